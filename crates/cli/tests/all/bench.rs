//! `signflash bench`: small rows, checked like large ones.

use crate::common::succeed;
use serde_json::Value;

#[test]
fn a_row_for_each_combination() {
    let arguments = "bench --json --batch 2 --heads 4 --heads-k 2 --head-dim 8,40 --seqlen 33 --causal false,true \
                     --dropout-p 0,0.1 --dtype f32,f16,bf16 --pass fwd,bwd --reps 1 --threads 2";
    let said = succeed(&arguments.split_whitespace().collect::<Vec<_>>());
    let rows: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2 * 2 * 2 * 3 * 2);
    for row in &rows {
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} in {row}"));
        let flops = 4.0 * 2.0 * 4.0 * 33.0 * 33.0 * number("head_dim");
        let flops = if row["causal"] == true { flops / 2.0 } else { flops };
        let flops = if row["pass"] == "bwd" { 2.5 * flops } else { flops };
        assert!((number("gflops") * number("ms") * 1e6 / flops - 1.0).abs() < 1e-9, "{row}");
        assert!((number("percent_of_peak") * number("peak_gflops") / number("gflops") - 100.0).abs() < 1e-6);
        for key in ["machine", "isa", "version", "commit", "device", "dtype"] {
            assert!(row[key].is_string(), "{key} in {row}");
        }
        assert_eq!(row["threads"], 2);
    }
}

#[test]
fn a_table_for_people() {
    let said =
        succeed(&["bench", "--seqlen", "64", "--head-dim", "16", "--causal", "--heads", "1", "--reps", "1"]);
    assert!(said.contains("GFLOP/s") && said.contains("% of peak") && said.contains("extra MiB"), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains("│ fwd")).count(), 2, "{said}");
}

//! `signflash bench`: small rows, checked like large ones.

use crate::common::{fail, succeed};
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
        let visible = if row["causal"] == true { 33.0 * 34.0 / 2.0 } else { 33.0 * 33.0 };
        let flops = 4.0 * 2.0 * 4.0 * visible * number("head_dim");
        let flops = if row["pass"] == "bwd" { 2.5 * flops } else { flops };
        assert!((number("gflops") * number("ms") * 1e6 / flops - 1.0).abs() < 1e-9, "{row}");
        assert!((number("percent_of_peak") * number("peak_gflops") / number("gflops") - 100.0).abs() < 1e-6);
        for key in ["machine", "isa", "version", "commit", "device", "dtype"] {
            assert!(row[key].is_string(), "{key} in {row}");
        }
        assert_eq!(row["threads"], 2);
    }
}

/// The rows of a run, each with what its rate says was computed: operations, over those of a head and an entry.
fn rows(arguments: &str) -> Vec<(Value, f64)> {
    let common = "--json --heads 2 --head-dim 8 --dropout-p 0.1 --pass fwd,bwd --reps 1 --threads 2";
    let arguments = format!("bench {common} {arguments}");
    let said = succeed(&arguments.split_whitespace().collect::<Vec<_>>());
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let flops = row["gflops"].as_f64().unwrap() * row["ms"].as_f64().unwrap() * 1e6;
        let passes = if row["pass"] == "bwd" { 2.5 } else { 1.0 };
        (row, flops / passes / (4.0 * 2.0 * 8.0))
    };
    said.lines().map(row).collect()
}

#[test]
fn windows_are_counted_by_what_is_seen() {
    let rows = rows("--seqlen 40 --window -1,-1 --window 3,0 --window 2,-1 --causal false,true");
    // 40 queries, of which the first see less than the window.
    let behind = 40.0 * 4.0 - 6.0;
    let seen: Vec<f64> = rows.iter().map(|(_, entries)| entries.round()).collect();
    let (ahead, both) = (40.0 * 41.0 / 2.0 + 39.0 + 38.0, 40.0 * 3.0 - 3.0);
    assert_eq!(seen, [1600.0, 820.0, behind, behind, ahead, both].map(|entries| [entries; 2]).concat());
    assert_eq!(rows[4].0["window"], serde_json::json!([3, 0]));
    assert_eq!((&rows[0].0["batch"], &rows[0].0["seqlen"]), (&1.into(), &40.into()));
}

#[test]
fn packed_sequences_are_measured_and_counted() {
    let rows = rows("--lengths 20x3,5..40x6,1..30/100+7 --causal --lengths-seed 3");
    assert_eq!(rows.len(), 6);
    for (row, entries) in &rows {
        assert!(row["seqlen"].is_null() && row["batch"].is_null(), "{row}");
        let (sequences, tokens) = (row["sequences"].as_u64().unwrap(), row["tokens"].as_u64().unwrap());
        match row["lengths"].as_str().unwrap() {
            "20x3" => assert_eq!((sequences, tokens, entries.round()), (3, 60, 3.0 * 210.0)),
            "5..40x6" => assert!(sequences == 6 && (30..=240).contains(&tokens), "{row}"),
            "1..30/100+7" => assert!(sequences > 4 && tokens == 107, "{row}"),
            other => panic!("{other}"),
        }
    }
    let table = succeed(&["bench", "--lengths", "20x3", "--head-dim", "8", "--reps", "1", "--heads", "1"]);
    assert!(table.contains("packed sequences, heads 1") && table.contains(" 20x3 "), "{table}");
}

#[test]
fn lengths_that_cannot_be_measured_are_refused() {
    for (arguments, needle) in [
        ("--lengths 9..3x4", "expected lengths of packed sequences"),
        ("--lengths 0x4", "the tokens of --lengths must be at least 1"),
        ("--lengths 1000000000x9", "of less than 2^32 tokens together"),
        ("--lengths 5 --seqlen 9", "cannot be used with"),
        ("--lengths 5 --batch 2", "cannot be used with"),
        ("--window 5", "expected LEFT,RIGHT"),
    ] {
        fail(&[&["bench"][..], &arguments.split(' ').collect::<Vec<_>>()].concat(), 2, &[needle]);
    }
}

#[test]
fn a_table_for_people() {
    let said =
        succeed(&["bench", "--seqlen", "64", "--head-dim", "16", "--causal", "--heads", "1", "--reps", "1"]);
    assert!(said.contains("GFLOP/s") && said.contains("% of peak") && said.contains("extra MiB"), "{said}");
    assert_eq!(said.lines().filter(|line| line.contains("│ fwd")).count(), 2, "{said}");
}

#[test]
fn what_joins_scores_is_varied_and_computed() {
    let rows = rows(
        "--seqlen 40 --batch 2 --alibi false,true --bias none,f32,bf16:bhq --dbias --mask none,b,q --sinks --softcap 5 \
         --head-dim-v 24",
    );
    assert_eq!(rows.len(), 2 * 3 * 3 * 2);
    for (row, entries) in &rows {
        // Columns of v are three times as many: of two products one, of five two.
        let of_v: f64 = if row["pass"] == "bwd" { (3.0 + 2.0 * 3.0) / 5.0 } else { (1.0 + 3.0) / 2.0 };
        assert_eq!(entries.round(), (2.0 * 1600.0 * of_v).round(), "{row}");
        assert_eq!((&row["sinks"], &row["head_dim_v"]), (&true.into(), &24.into()));
        assert_eq!(row["dbias"], !row["bias"].is_null(), "{row}");
    }
    let said: Vec<_> = rows.iter().map(|(row, _)| (row["bias"].as_str(), row["mask"].as_str())).collect();
    assert!(said.contains(&(Some("bf16:bhq"), Some("q"))) && said.contains(&(Some("f32:hq"), Some("b"))));
    let table = succeed(
        &"bench --seqlen 20 --head-dim 8 --reps 1 --heads 2 --bias f32:k --dropout-p 0"
            .split(' ')
            .collect::<Vec<_>>(),
    );
    assert!(table.contains(" f32:k ") && !table.contains("alibi"), "{table}");
    let packed = succeed(
        &"bench --json --lengths 20x3 --head-dim 8 --reps 1 --heads 2 --bias f16:bq --dbias --pass bwd --dropout-p 0"
            .split(' ')
            .collect::<Vec<_>>(),
    );
    assert!(packed.contains("\"f16:bq\""), "{packed}");
}

#[test]
fn what_cannot_join_scores_is_refused() {
    for (arguments, needle) in [
        ("--dbias", "--dbias must be left out without a --bias"),
        ("--bias f64", "expected f32, f16 or bf16"),
        ("--bias f32:qh", "expected letters of bhq in this order"),
        ("--mask x", "expected letters of bhq in this order"),
    ] {
        fail(&[&["bench"][..], &arguments.split(' ').collect::<Vec<_>>()].concat(), 2, &[needle]);
    }
}

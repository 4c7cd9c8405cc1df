//! `attend --verify`: nothing healthy fails, and what is wrong does.

use crate::common::{Dir, fail, read, signflash, succeed, tensor, write};
use signflash_cli::files::{Archive, Data, FileElement, Tensor};
use signflash_core::suite::Values;
use signflash_core::{Shape, bf16, f16};

/// (batch, heads, seqlen, head_dim), as it is stored.
fn stored<T: FileElement>([batch, seqlen, heads, dim]: [usize; 4], values: &[f64]) -> Tensor {
    let at = |n: usize| {
        let (b, h, i, d) = (n / dim / seqlen / heads, n / dim / seqlen % heads, n / dim % seqlen, n % dim);
        T::from_f32(values[((b * seqlen + i) * heads + h) * dim + d] as f32)
    };
    let data = T::wrap((0..values.len()).map(at).collect());
    Tensor { shape: vec![batch, heads, seqlen, dim], data }
}

fn archive<T: FileElement>(shape: &Shape, values: &Values, settings: &[(&str, &str)]) -> Archive {
    let tensors = [
        ("q", stored::<T>(shape.q(), &values.q)),
        ("k", stored::<T>(shape.k(), &values.k)),
        ("v", stored::<T>(shape.k(), &values.v)),
        ("dout", stored::<T>(shape.q(), &values.dout)),
    ];
    Archive {
        tensors: tensors.map(|(name, tensor)| (name.to_string(), tensor)).into(),
        metadata: settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        present: Vec::new(),
    }
}

fn of_dtype(dtype: &str, shape: &Shape, values: &Values, settings: &[(&str, &str)]) -> Archive {
    match dtype {
        "f32" => archive::<f32>(shape, values, settings),
        "f16" => archive::<f16>(shape, values, settings),
        _ => archive::<bf16>(shape, values, settings),
    }
}

fn shape(seqlen_q: usize, seqlen_k: usize, head_dim: usize) -> Shape {
    Shape::new(1, seqlen_q, seqlen_k).heads(2, 2).head_dim(head_dim)
}

const DTYPES: [&str; 3] = ["f32", "f16", "bf16"];

/// Every instruction set says ok (the best and the plainest, without `SIGNFLASH_TEST=full`); otherwise what it said.
fn complaints(dir: &Dir, what: &str, archive: &Archive) -> Vec<String> {
    write(dir.path("in.safetensors"), archive);
    let mut isas = signflash_cpu::Isa::available();
    if !matches!(std::env::var("SIGNFLASH_TEST").as_deref(), Ok("full" | "all")) {
        isas.retain(|isa| [signflash_cpu::Isa::Portable, signflash_cpu::Isa::best()].contains(isa));
    }
    let said = isas.iter().map(|isa| {
        let ran = signflash(&["attend", &dir.file("in.safetensors"), "--verify", "--isa", isa.name()]);
        if ran.code == 0 { None } else { Some(format!("{what}, {isa}: {}{}", ran.stderr, ran.stdout)) }
    });
    said.flatten().collect()
}

#[test]
fn one_key_and_a_scale_of_0_verify() {
    let dir = Dir::new();
    let mut wrong = vec![];
    for dtype in DTYPES {
        for settings in [&[("dropout_p", "0")][..], &[("dropout_p", "0.5")], &[("softmax_scale", "0")]] {
            let shape = shape(5, 1, 64);
            let values = Values::normal(&shape, 1, 1.0, 1.0);
            let what = format!("{dtype} {settings:?}");
            wrong.extend(complaints(&dir, &what, &of_dtype(dtype, &shape, &values, settings)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Adds to v, multiplies q and k.
fn values(shape: &Shape, std: f64, mean_of_v: f64) -> Values {
    let mut values = Values::normal(shape, 7, std, std);
    values.v.iter_mut().for_each(|x| *x += mean_of_v);
    values
}

/// Everything is `x`.
fn equal(shape: &Shape, x: f64) -> Values {
    let mut values = Values::normal(shape, 7, 1.0, 1.0);
    for tensor in [&mut values.q, &mut values.k, &mut values.v, &mut values.dout] {
        tensor.fill(x);
    }
    values
}

#[test]
fn numbers_of_other_kinds_verify() {
    let dir = Dir::new();
    let mut wrong = vec![];
    let causal: &[(&str, &str)] = &[("dropout_p", "0.1"), ("causal", "true")];
    let mut one_v = Values::normal(&shape(1, 1, 1), 1, 1.0, 1.0);
    one_v.v.fill(1.0 / 15.0);
    let mut small = values(&shape(33, 65, 64), 1.0, 0.0);
    small.v.iter_mut().for_each(|x| *x *= 3e-39);
    let cases = [
        ("v with mean 1", shape(16, 2048, 64), values(&shape(16, 2048, 64), 1.0, 1.0), &causal[..1]),
        ("v with mean 1, 8192 keys", shape(4, 8192, 32), values(&shape(4, 8192, 32), 1.0, 1.0), &causal[..1]),
        ("std 3", shape(128, 128, 64), values(&shape(128, 128, 64), 3.0, 0.0), causal),
        ("std 8", shape(128, 128, 64), values(&shape(128, 128, 64), 8.0, 0.0), causal),
        ("all 0.7", shape(33, 100, 128), equal(&shape(33, 100, 128), 0.7), causal),
        ("all -0.7, head_dim 256", shape(33, 129, 256), equal(&shape(33, 129, 256), -0.7), &causal[..0]),
        ("all 0.3, 15 keys", shape(64, 15, 64), equal(&shape(64, 15, 64), 0.3), &causal[..0]),
        ("1/15 alone", shape(1, 1, 1), one_v, &causal[..0]),
        ("1/15 everywhere", shape(64, 64, 64), equal(&shape(64, 64, 64), 1.0 / 15.0), &causal[..0]),
        ("subnormal v", shape(33, 65, 64), small, causal),
    ];
    for (what, shape, values, settings) in cases {
        for dtype in DTYPES {
            let what = format!("{what}, {dtype}");
            wrong.extend(complaints(&dir, &what, &of_dtype(dtype, &shape, &values, settings)));
        }
    }
    assert!(wrong.is_empty(), "{} of them:\n{}", wrong.len(), wrong.join("\n"));
}

/// The file's results are its own, which verify; then one is spoilt.
#[test]
fn a_scale_of_1_percent_and_a_swapped_head_are_found() {
    let dir = Dir::new();
    for (dtype, std, mean) in [("f32", 1.0, 0.0), ("f16", 1.0, 0.0), ("bf16", 1.0, 0.0), ("f16", 3.0, 1.0)] {
        let shape = shape(48, 256, 64);
        let mut input = of_dtype(dtype, &shape, &values(&shape, std, mean), &[("dropout_p", "0.1")]);
        write(dir.path("in.safetensors"), &input);
        succeed(&["attend", &dir.file("in.safetensors"), "-o", &dir.file("out.safetensors")]);
        let results = read(dir.path("out.safetensors"));
        for name in ["out", "lse", "dq", "dk", "dv"] {
            input.tensors.insert(name.into(), results.tensors[name].clone());
        }
        write(dir.path("in.safetensors"), &input);
        let said = succeed(&["attend", &dir.file("in.safetensors"), "--verify"]);
        assert!(!said.contains("off"), "{said}");
        for name in ["out", "dq", "dk", "dv"] {
            for (spoil, what) in [(scaled as fn(&Data) -> Data, "scaled"), (swapped, "swapped")] {
                let mut archive = input.clone();
                let tensor = archive.tensors.get_mut(name).unwrap();
                tensor.data = spoil(&tensor.data);
                write(dir.path("spoilt.safetensors"), &archive);
                let needles = [format!("{name} vs file")];
                for verify in ["--verify", "--verify=file"] {
                    let arguments = ["attend", &dir.file("spoilt.safetensors"), verify];
                    let said = fail(&arguments, 1, &[&needles[0], "1 of "]).stdout;
                    let blamed = verify == "--verify=file" || said.contains("FAILED; the file's is off");
                    assert!(blamed, "{dtype} {what} {name}: {said}");
                }
            }
        }
    }
}

fn change(data: &Data, change: impl Fn(usize, &[f64]) -> f64) -> Data {
    let numbers = data.to_f64();
    let changed = (0..numbers.len()).map(|n| change(n, &numbers) as f32);
    match data {
        Data::F32(_) => f32::wrap(changed.collect()),
        Data::F16(_) => f16::wrap(changed.map(f16::from_f32).collect()),
        _ => bf16::wrap(changed.map(bf16::from_f32).collect()),
    }
}

/// 2 % of the file's against ours, since both may be off by their bound.
fn scaled(data: &Data) -> Data {
    change(data, |n, x| x[n] * 1.01)
}

/// Heads are stored one behind the other, and there are two.
fn swapped(data: &Data) -> Data {
    change(data, |n, x| x[(n + x.len() / 2) % x.len()])
}

#[test]
fn random_files_verify() {
    let count = std::env::var("SIGNFLASH_VERIFY_FILES").map_or(40, |count| count.parse().unwrap());
    let dir = Dir::new();
    let mut wrong = vec![];
    for n in 0..count {
        // Numbers that look random and are the same every time.
        let draw = |salt: u64, end: usize| {
            let x = (n * 31 + salt + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            ((x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as usize % end
        };
        let length = |salt| 1 + draw(salt, [3, 5, 20, 140][draw(salt + 1, 4)]);
        let num_heads_k = 1 + draw(2, 2);
        let shape = Shape::new(1 + draw(3, 2), length(4), length(6))
            .heads(num_heads_k * (1 + draw(8, 3)), num_heads_k)
            .head_dim([1, 2, 8, 16, 33, 64, 80, 128, 256][draw(9, 9)]);
        let settings = [
            ("dropout_p", ["0", "0.1", "0.5", "0.9"][draw(10, 4)]),
            ("causal", ["true", "false"][draw(11, 2)]),
            ("seed", "3"),
        ];
        let values = Values::normal(&shape, n, 1.0, 1.0);
        write(dir.path("in.safetensors"), &of_dtype(DTYPES[draw(12, 3)], &shape, &values, &settings));
        let ran = signflash(&["attend", &dir.file("in.safetensors"), "--verify"]);
        if ran.code != 0 {
            wrong.push(format!("{shape:?} {settings:?}: {}{}", ran.stderr, ran.stdout));
        }
    }
    assert!(wrong.is_empty(), "{} of {count} files:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_file_of_nothing_but_heads_verifies_at_once() {
    let dir = Dir::new();
    let settings = [("dropout_p", "0.5")];
    let mut archive =
        crate::common::input::<f32>([1 << 20, 1 << 20, 0, 1], [1 << 20, 1 << 20, 0, 1], &settings);
    archive.tensors.insert("lse".into(), tensor::<f32>(&[1 << 20, 1 << 20, 0], 1));
    write(dir.path("in.safetensors"), &archive);
    succeed(&["attend", &dir.file("in.safetensors"), "--verify", "-o", &dir.file("out.safetensors")]);
}

#[test]
fn scores_of_ten_milliards_verify_and_what_is_wrong_there_does_not() {
    let dir = Dir::new();
    let mut wrong = vec![];
    for (dtype, scale) in [("f32", "0.125"), ("bf16", "0.125"), ("f16", "1250")] {
        for seqlen_k in [1, 2, 65] {
            let shape = shape(17, seqlen_k, 64);
            // <q, k> is about 8 std^2: a score of 1e10, where neighbouring numbers of f32 are 1024 apart.
            let std = if dtype == "f16" { 1000.0 } else { 1e5 };
            let mut values = Values::normal(&shape, 3, 1.0, 1.0);
            values.q.iter_mut().chain(&mut values.k).for_each(|x| *x *= std);
            let settings = [("dropout_p", "0.1"), ("causal", "true"), ("softmax_scale", scale)];
            let mut archive = of_dtype(dtype, &shape, &values, &settings);
            wrong.extend(complaints(&dir, &format!("{dtype}, {seqlen_k} keys"), &archive));

            let spoilt = scaled(&archive.tensors["v"].data);
            succeed(&["attend", &dir.file("in.safetensors"), "-o", &dir.file("out.safetensors")]);
            archive.tensors.insert("out".into(), read(dir.path("out.safetensors")).tensors["out"].clone());
            archive.tensors.get_mut("v").unwrap().data = spoilt;
            write(dir.path("spoilt.safetensors"), &archive);
            fail(&["attend", &dir.file("spoilt.safetensors"), "--verify"], 1, &["out vs file"]);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nothing_is_ok_that_was_compared_with_nothing() {
    let dir = Dir::new();
    let (input, output) = (dir.file("in.npz"), dir.file("out.npz"));
    let mut archive = crate::common::input::<f32>([1, 2, 5, 8], [1, 2, 7, 8], &[]);
    let verify = ["attend", &input, "--verify=file"];
    let missing = ["a result to compare with", "the file holds", "--verify alone"];
    write(&input, &archive);
    fail(&verify, 2, &missing);
    succeed(&["attend", &input, "--verify=file", "--probs"]); // the sign bits with the formula

    succeed(&["attend", &input, "-o", &output]);
    let results = read(&output);
    archive.tensors.insert("dq".into(), results.tensors["dq"].clone());
    archive.tensors.remove("dout");
    write(&input, &archive);
    fail(&verify, 2, &missing);
    let said = succeed(&["attend", &input, "--verify"]);
    assert!(said.contains("dq: not compared, the file holds no dout"), "{said}");

    archive.tensors.insert("out".into(), results.tensors["out"].clone());
    write(&input, &archive);
    let said = succeed(&verify);
    let verdict = |name: &str| said.lines().find(|line| line.contains(name)).unwrap().contains(" ok ");
    assert!(verdict("out ") && !verdict("lse "), "{said}");
}

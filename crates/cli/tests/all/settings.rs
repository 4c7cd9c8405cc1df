//! Settings in files: what is ours and mistyped, another library's or not computed is never ignored.

use crate::common::{Dir, fail, input, read, succeed, tensor, write};
use signflash_cli::files::{Archive, npy};
use std::fs;
use std::io::{Cursor, Write};

const FORMATS: [&str; 2] = ["in.npz", "in.safetensors"];

fn with(settings: &[(&str, &str)]) -> Archive {
    input::<f32>([1, 2, 5, 8], [1, 1, 7, 8], settings)
}

#[test]
fn a_mistyped_setting_is_refused_and_its_name_suggested() {
    let dir = Dir::new();
    for format in FORMATS {
        for (key, value, suggested) in [
            ("dropout", "0.1", "`dropout_p`?"),
            ("dropout_prob", "0.1", "`dropout_p`?"),
            ("droput_p", "0.1", "`dropout_p`?"),
            ("is_causal", "True", "`causal`?"),
            ("Causal", "True", "`causal`?"),
            ("sm_scale", "1", "`softmax_scale`?"),
            ("scale_rules", "nominal", "`scale_rule`?"),
            ("signflash_seed", "1", "`seed`?"),
            ("window_size", "(8, 8)", "`window`?"),
            ("sliding_window", "4096", "`window`?"),
        ] {
            write(dir.path(format), &with(&[(key, value)]));
            fail(&["attend", &dir.file(format)], 2, &[&format!("metadata `{key}`"), suggested, "pass --"]);
        }
        write(dir.path(format), &with(&[("dropout", "0.1")]));
        succeed(&["attend", &dir.file(format), "--dropout-p", "0.2"]);
    }
}

#[test]
fn what_is_not_computed_is_refused() {
    let dir = Dir::new();
    for format in FORMATS {
        for (key, value, said) in [
            ("logits_soft_cap", "50.0", "did you mean `softcap`?"),
            ("alibi", "True", "store the tensor alibi_slopes"),
            ("block_table", "[0]", "not computed"),
        ] {
            write(dir.path(format), &with(&[(key, value)]));
            fail(&["attend", &dir.file(format)], 2, &[key, said]);
        }
        write(dir.path(format), &with(&[("alibi", "false"), ("softcap", "0.0")]));
        succeed(&["attend", &dir.file(format)]);
        for (name, said) in
            [("attn_mask", "expected `mask`"), ("s_aux", "expected `sinks`"), ("block_table", "not computed")]
        {
            let mut archive = with(&[]);
            archive.tensors.insert(name.into(), tensor::<f32>(&[2], 5));
            write(dir.path(format), &archive);
            fail(&["attend", &dir.file(format)], 2, &[&format!("tensor `{name}`"), said]);
        }
        let mut archive = with(&[]);
        archive.tensors.insert("dropout_p".into(), tensor::<f32>(&[], 5));
        write(dir.path(format), &archive);
        fail(&["attend", &dir.file(format)], 2, &["tensor `dropout_p`", "tensors are no settings"]);
    }
}

#[test]
fn somebody_elses_metadata_is_noted_and_an_npz_holds_none() {
    let dir = Dir::new();
    let archive = with(&[("format", "pt"), ("source", "a GPU"), ("seed", "3")]);
    write(dir.path("in.safetensors"), &archive);
    let said = succeed(&["attend", &dir.file("in.safetensors"), "-o", &dir.file("out.npz")]);
    assert!(said.contains("not used: metadata source\n"), "{said}");
    assert_eq!(succeed(&["attend", &dir.file("in.safetensors"), "-q", "-o", &dir.file("out.npz")]), "");
    assert_eq!(read(dir.path("out.npz")).metadata["seed"], "3");
    // Our own results are read again.
    succeed(&["attend", &dir.file("in.safetensors"), "--probs", "-o", &dir.file("out.npz")]);
    assert!(!succeed(&["plot", &dir.file("out.npz"), "-o", &dir.file("map.png")]).contains("not used"));
    write(dir.path("in.npz"), &archive);
    fail(&["attend", &dir.file("in.npz")], 2, &["metadata `format` is no setting", "layout, window, causal"]);
}

#[test]
fn a_picture_is_not_drawn_by_settings_that_are_not_understood() {
    let dir = Dir::new();
    let mut archive = with(&[("is_causal", "true")]);
    archive.tensors.insert("probs".into(), tensor::<f32>(&[1, 2, 5, 7], 5));
    for format in FORMATS {
        write(dir.path(format), &archive);
        fail(&["plot", &dir.file(format), "-o", &dir.file("map.png")], 2, &["`is_causal`", "`causal`?"]);
    }
}

/// An .npz whose settings are this JSON.
fn npz(json: &str) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for name in ["q", "k", "v"] {
        zip.start_file(format!("{name}.npy"), zip::write::SimpleFileOptions::default()).unwrap();
        npy::write_header(&mut zip, "<f4", &[1, 1, 1, 1]).unwrap();
        zip.write_all(&[0; 4]).unwrap();
    }
    zip.start_file("settings.npy", zip::write::SimpleFileOptions::default()).unwrap();
    npy::write_header(&mut zip, &format!("|S{}", json.len()), &[]).unwrap();
    zip.write_all(json.as_bytes()).unwrap();
    zip.finish().unwrap().into_inner()
}

#[test]
fn values_of_any_type_are_understood_or_refused() {
    let dir = Dir::new();
    let name = dir.file("in.npz");
    let run = |json: &str| {
        fs::write(&name, npz(json)).unwrap();
    };
    for (json, means) in [
        (r#"{"causal": true, "dropout_p": 0.5}"#, "causal, softmax_scale 1, dropout_p 0.5"),
        (r#"{"causal": " True", "dropout_p": "0.5"}"#, "causal, softmax_scale 1, dropout_p 0.5"),
        (r#"{"causal": 1, "dropout_p": 5e-1, "seed": 7}"#, "causal, softmax_scale 1, dropout_p 0.5, seed 7"),
        (r#"{"window": [40, 17]}"#, "f32, window 40,17, softmax_scale 1"),
        (r#"{"window": "(40, -1)"}"#, "f32, window 40,-1, softmax_scale 1"),
        (r#"{"window": -1, "window_size": [-1, -1]}"#, "f32, softmax_scale 1, no dropout"),
        (r#"{"causal": null, "softmax_scale": null}"#, "f32, softmax_scale 1, no dropout"),
        (r#"{"seed": 18446744073709551615, "dropout_p": 0.5}"#, "seed 18446744073709551615"),
    ] {
        run(json);
        let said = succeed(&["attend", &name]);
        assert!(said.contains(means), "{json}: {said}");
    }
    for (json, needle) in [
        (r#"{"causal": 1.0}"#, "metadata `causal`: expected true or false, got \"1.0\""),
        (r#"{"causal": "on"}"#, "metadata `causal`"),
        (r#"{"dropout_p": true}"#, "metadata `dropout_p`"),
        (r#"{"dropout_p": "nan"}"#, "metadata `dropout_p`"),
        (r#"{"dropout_p": NaN}"#, "entry `settings` must be a JSON object"),
        (r#"{"dropout_p": [0.1]}"#, "metadata `dropout_p`: expected a number in [0, 1), got \"[0.1]\""),
        (r#"{"window": ["40", "17"]}"#, "`window` is an object or no list of numbers"),
        (r#"{"window": [40, 17, 3]}"#, "metadata `window`: expected LEFT,RIGHT"),
        (r#"{"window": 40}"#, "metadata `window`: expected LEFT,RIGHT, two whole numbers, -1 for no bound"),
        (r#"{"window": {"left": 40}}"#, "`window` is an object or no list"),
        (r#"{"dropout_p": ""}"#, "metadata `dropout_p`"),
        (r#"{"seed": 1.0}"#, "metadata `seed`: expected an integer"),
        (r#"{"seed": -1}"#, "metadata `seed`"),
        (r#"{"seed": 18446744073709551616}"#, "metadata `seed`"),
        (r#"{"softmax_scale": "Infinity"}"#, "metadata `softmax_scale`"),
        (r#"{"softmax_scale": 1e300}"#, "finite as f32, too (up to 3.4e38), got 1e300"),
        (r#"{"layout": "sbhd"}"#, "metadata `layout`: expected bhsd or bshd, or thd"),
        (r#"{"dtype": "f16"}"#, "metadata `dtype` is \"f16\", but q is f32"),
        (r#"{"seed": 1, "seed": 2}"#, "it holds `seed` twice"),
        (r#"{"": 1}"#, "metadata `` is no setting"),
    ] {
        run(json);
        fail(&["attend", &name], 2, &[needle]);
    }
}

#[test]
fn metadata_that_comes_twice_is_refused() {
    let dir = Dir::new();
    let header = r#"{"__metadata__":{"seed":"1","seed":"2"},"q":{"dtype":"F32","shape":[1,1,1,1],"data_offsets":[0,4]}}"#;
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
    fs::write(dir.path("in.safetensors"), bytes).unwrap();
    fail(&["attend", &dir.file("in.safetensors")], 2, &["holds `seed` twice"]);
}

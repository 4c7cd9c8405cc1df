//! Windows: in files, on the command line, beside causality.

use crate::common::{Dir, fail, input, read, succeed, write};
use signflash_cli::files::FileElement;
use signflash_core::{bf16, f16};

#[test]
fn windows_verify_wherever_they_lie() {
    let dir = Dir::new();
    let (name, output) = (dir.file("in.npz"), dir.file("out.npz"));
    // More keys than queries, more queries than keys: some of those see nothing.
    for (queries, keys) in [(70, 70), (20, 90), (90, 20)] {
        for window in ["0,0", "5,-1", "-1,5", "40,17", "3,0", "0,64", "200,200"] {
            let settings = [("window", window), ("dropout_p", "0.2"), ("seed", "5")];
            let (q, k) = ([2, 4, queries, 16], [2, 2, keys, 16]);
            for archive in
                [input::<f32>(q, k, &settings), input::<f16>(q, k, &settings), input::<bf16>(q, k, &settings)]
            {
                write(&name, &archive);
                let said = succeed(&["attend", &name, "--verify", "--probs", "-o", &output]);
                assert!(said.contains("wrong sign bits: 0 of "), "{queries} x {keys}, {window}: {said}");
            }
            assert_eq!(read(&output).metadata["window"], window);
        }
    }
}

#[test]
fn a_window_hides_what_it_says() {
    let dir = Dir::new();
    let (name, output) = (dir.file("in.npz"), dir.file("out.npz"));
    write(&name, &input::<f32>([1, 1, 4, 8], [1, 1, 6, 8], &[]));
    succeed(&["attend", &name, "--window", "1,2", "--probs", "-o", &output]);
    let results = read(&output);
    let probs = f32::borrow(&results.tensors["probs"].data).unwrap();
    for i in 0..4 {
        for j in 0..6 {
            // The last query faces the last key.
            let visible = (i + 1..=i + 4).contains(&j);
            assert_eq!(probs[i * 6 + j] != 0.0, visible, "query {i}, key {j}");
        }
    }
}

#[test]
fn the_same_window_may_be_said_in_several_ways() {
    let dir = Dir::new();
    let (name, output) = (dir.file("in.npz"), dir.file("out.npz"));
    let run = |settings: &[(&str, &str)], flags: &[&str]| {
        write(&name, &input::<f32>([1, 2, 40, 8], [1, 2, 40, 8], settings));
        succeed(&[&["attend", &name, "-o", &output][..], flags].concat());
        read(&output).tensors
    };
    let expected = run(&[("window", "9,0")], &[]);
    for settings in [[("window", "(9, 0)")], [("window", "[9,0]")], [("window", " 9 , 0")]] {
        assert_eq!(run(&settings, &[]), expected);
    }
    // Causality makes the right side 0, whatever the window says.
    assert_eq!(run(&[("window", "9,-1"), ("causal", "true")], &[]), expected);
    assert_eq!(run(&[("window", "9,5")], &["--causal"]), expected);
    assert_eq!(run(&[("window", "3,3")], &["--window", "9,0"]), expected);
    assert_eq!(run(&[("window", "3,3")], &["--window=9,0"]), expected);
    assert_eq!(run(&[("causal", "true")], &[]), run(&[], &["--window", "-1,0"]));
    assert_eq!(run(&[("window", "None")], &[]), run(&[], &[]));
    assert_eq!(run(&[("window", "39,39")], &[]), run(&[], &["--window=-1,-1"]));
    assert_ne!(run(&[], &[]), expected);
}

#[test]
fn what_is_no_window_is_refused() {
    let dir = Dir::new();
    let name = dir.file("in.safetensors");
    write(&name, &input::<f32>([1, 2, 5, 8], [1, 2, 5, 8], &[]));
    for value in ["5", "5,", "-2,0", "1,2,3", "a,b", "--causal"] {
        fail(&["attend", &name, "--window", value], 2, &["--window", "expected LEFT,RIGHT"]);
    }
    write(&name, &input::<f32>([1, 2, 5, 8], [1, 2, 5, 8], &[("window", "-5,0")]));
    fail(&["attend", &name], 2, &["metadata `window`: expected LEFT,RIGHT", "-5,0", "pass --window"]);
}

#[test]
fn a_summary_says_the_window() {
    let dir = Dir::new();
    let name = dir.file("in.npz");
    write(&name, &input::<f32>([1, 2, 5, 16], [1, 2, 5, 16], &[]));
    let said = succeed(&["attend", &name, "--window", "2,-1"]);
    assert!(said.contains("f32, window 2,-1, softmax_scale 0.25"), "{said}");
    let said = succeed(&["attend", &name, "--window", "-1,3", "--causal"]);
    assert!(said.contains("f32, causal, softmax_scale 0.25"), "{said}");
}

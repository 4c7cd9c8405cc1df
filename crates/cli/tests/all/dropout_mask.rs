//! `signflash dropout-mask`.

use crate::common::{Dir, VECTORS, read, succeed, vector};
use signflash_cli::files::{Data, npy};
use std::fs;

fn entries(path: &std::path::Path) -> (Vec<usize>, Vec<u8>) {
    let bytes = fs::read(path).unwrap();
    let (header, used) = npy::read_header(&mut bytes.as_slice()).unwrap();
    assert_eq!((header.descr.as_str(), header.fortran_order), ("|b1", false));
    (header.shape, bytes[used as usize..].to_vec())
}

#[test]
fn the_dropout_mask_is_the_one_of_flash_attention_2() {
    let dir = Dir::new();
    let cases = [
        (VECTORS[0], "--batch 2 --heads 3 --seqlen-q 256 --seqlen-k 256 -p 0.1 --seed 123"),
        (VECTORS[1], "--batch 1 --heads 2 --seqlen-q 200 --seqlen-k 200 -p 0.3 --seed 7"),
        (VECTORS[3], "--batch 1 --heads 4 --seqlen-q 113 --seqlen-k 203 -p 0.17 --seed 99"),
    ];
    for (name, arguments) in cases {
        let (npy, bits) = (dir.file("keep.npy"), dir.file("keep.bits"));
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let said = succeed(&[&["dropout-mask", "-o", &npy], &arguments[..]].concat());
        assert_eq!(
            succeed(&[&["dropout-mask", "-o", &bits, "--threads", "1"], &arguments[..]].concat()),
            said
        );
        let signbit = &read(vector(name)).tensors["signbit"];
        let Data::U8(dropped) = &signbit.data else { panic!("signbit is u8") };
        let (shape, keep) = entries(npy.as_ref());
        assert_eq!(shape, signbit.shape);
        assert!(keep.iter().zip(dropped).all(|(&keep, &dropped)| (keep != 0) != (dropped != 0)), "{name}");
        let packed: Vec<u8> =
            keep.chunks(8).map(|eight| eight.iter().rev().fold(0, |byte, bit| byte << 1 | bit)).collect();
        assert_eq!(fs::read(&bits).unwrap(), packed, "{name}");
        let kept: u64 = keep.iter().map(|&keep| u64::from(keep)).sum();
        assert!(said.contains(&format!("kept       {kept}\n")), "{said}");
    }
}

/// `mask` was its name before masks of scores.
#[test]
fn its_older_name_works() {
    let arguments = "--seqlen-q 40 --seqlen-k 70 -p 0.3 --seed 5".split(' ').collect::<Vec<_>>();
    let said = |command| succeed(&[&[command][..], &arguments].concat());
    assert_eq!(said("mask"), said("dropout-mask"));
}

#[test]
fn the_statistics_know_the_exact_expectation() {
    let arguments = "dropout-mask --heads 4 --seqlen-q 512 --seqlen-k 512 -p 0.9 --seed 5";
    let said = succeed(&arguments.split(' ').collect::<Vec<_>>());
    assert!(said.contains("entries    1048576\n"), "{said}");
    assert!(said.contains("= 26 / 256, for dropout_p 0.9"), "{said}"); // floor(255 * (1 - 0.9f32)) + 1
    let z: f64 = said.lines().last().unwrap().trim_start_matches("z").trim().parse().unwrap();
    assert!(z.abs() < 5.0, "{said}");
}

#[test]
fn nothing_is_dropped_at_zero_and_nothing_is_no_problem() {
    let said = succeed(&"dropout-mask --seqlen-q 3 --seqlen-k 5 -p 0".split(' ').collect::<Vec<_>>());
    assert!(said.contains("kept       15\n") && !said.contains("z "), "{said}");
    let dir = Dir::new();
    let out = dir.file("keep.npy");
    succeed(&["dropout-mask", "--seqlen-q", "0", "--seqlen-k", "5", "-p", "0.5", "-o", &out]);
    assert_eq!(entries(out.as_ref()), (vec![1, 1, 0, 5], vec![]));
}

#[test]
fn a_dropout_mask_without_entries_takes_no_time_however_many_heads_it_has() {
    let start = std::time::Instant::now();
    for (queries, keys) in [("0", "5"), ("5", "0")] {
        let heads = ["--batch", "2147483647", "--heads", "1048576"];
        let sizes = ["--seqlen-q", queries, "--seqlen-k", keys, "-p", "0.5"];
        assert!(succeed(&[&["dropout-mask"][..], &heads, &sizes].concat()).contains("entries    0\n"));
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(20));
}

#[test]
fn a_dropout_mask_without_entries_needs_no_memory() {
    let dir = Dir::new();
    let wide = "2147482624";
    for sizes in [["--batch", "0", "--seqlen-q", "5"], ["--batch", "1", "--seqlen-q", "0"]] {
        let out = dir.file("keep.npy");
        let arguments = [&["dropout-mask", "--seqlen-k", wide, "-p", "0.5", "-o", &out][..], &sizes].concat();
        assert!(succeed(&arguments).contains("entries    0\n"));
        assert_eq!(entries(out.as_ref()).0.iter().product::<usize>(), 0);
    }
}

//! Pictures: that they are there, complete, and the same by either way.

use crate::common::{Dir, VECTORS, fail, input, succeed, tensor, vector, write};
use signflash_cli::files::{Archive, Data, FileElement, Tensor};
use std::fs;
use std::ops::Range;

/// Width, height and pixels.
fn png(path: &std::path::Path) -> (usize, usize, Vec<u8>) {
    let mut reader = png::Decoder::new(crate::common::source(path)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    (info.width as usize, info.height as usize, pixels)
}

const INK: [u8; 3] = [28, 32, 40];
const HIDDEN: [u8; 3] = [192, 195, 202];
const NOT_A_NUMBER: [u8; 3] = [190, 40, 255];
/// A probability of zero, kept and dropped.
const DARK: [[u8; 3]; 2] = [[8, 18, 38], [46, 9, 30]];

/// A picture, and where in it the map is: within a dark frame.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
    columns: Range<usize>,
    rows: Range<usize>,
}

impl Picture {
    fn of(path: &str) -> Self {
        let (width, height, pixels) = png(path.as_ref());
        let at = |x: usize, y: usize| &pixels[3 * (y * width + x)..][..3];
        let ink = |x: usize, y: usize| at(x, y) == INK;
        let corner = (0..width * height).map(|i| (i % width, i / width));
        let framed = |&(x, y): &(usize, usize)| {
            x + 400 < width && y + 400 < height && (0..400).all(|i| ink(x + i, y) && ink(x, y + i))
        };
        let (left, top) = corner.clone().find(framed).expect("a frame");
        let right = (left..width).find(|&x| !ink(x, top)).unwrap();
        let bottom = (top..height).find(|&y| !ink(left, y)).unwrap();
        let frame = (0..).find(|&i| !ink(left + i, top + i)).unwrap();
        let [columns, rows] = [left + frame..right - frame, top + frame..bottom - frame];
        Self { width, height, pixels, columns, rows }
    }

    fn at(&self, x: usize, y: usize) -> [u8; 3] {
        self.pixels[3 * (y * self.width + x)..][..3].try_into().unwrap()
    }

    /// A pixel of the map, by its place from 0 to 1.
    fn map(&self, key: f64, query: f64) -> [u8; 3] {
        let place = |range: &Range<usize>, share: f64| range.start + (share * range.len() as f64) as usize;
        self.at(place(&self.columns, key), place(&self.rows, query))
    }

    fn count(&self, color: [u8; 3]) -> usize {
        self.pixels.as_chunks::<3>().0.iter().filter(|pixel| **pixel == color).count()
    }

    /// Marks beside the map, which say which query is where.
    fn ticks_of_queries(&self) -> usize {
        let x = self.columns.start - 10;
        self.rows.clone().filter(|&y| self.at(x, y) != [255; 3] && self.at(x, y - 1) == [255; 3]).count()
    }

    /// And below it.
    fn ticks_of_keys(&self) -> usize {
        let y = self.rows.end + 10;
        self.columns.clone().filter(|&x| self.at(x, y) != [255; 3] && self.at(x - 1, y) == [255; 3]).count()
    }
}

fn luma([r, g, b]: [u8; 3]) -> f64 {
    0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b)
}

/// The picture of a map, by `signflash plot`.
fn plot(queries: usize, keys: usize, view: &[&str], probability: impl Fn(usize, usize) -> f32) -> Picture {
    let dir = Dir::new();
    let (probs, picture) = (dir.file("map.safetensors"), dir.file("map.png"));
    let entries = (0..queries * keys).map(|i| probability(i / keys, i % keys)).collect();
    let tensor = Tensor { shape: vec![1, 1, queries, keys], data: Data::F32(entries) };
    write(&probs, &Archive { tensors: [("probs".to_string(), tensor)].into(), ..Archive::default() });
    succeed(&[&["plot", &probs, "-o", &picture], view].concat());
    Picture::of(&picture)
}

/// q, k, v of a head whose queries attend to the token before them: keys are points on a sphere, queries the point
/// of the key before, `sharpness` times as far out.
fn previous_token<T: FileElement>(seqlen: usize, sharpness: f32) -> Archive {
    let mut archive = input::<T>([1, 1, seqlen, 64], [1, 1, seqlen, 64], &[("softmax_scale", "1")]);
    // Independent coordinates (splitmix64): no two points may be near each other.
    let coordinate = |i: usize| {
        let mut z = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let unit = |token: usize| {
        let point: Vec<f32> = (64 * token..64 * (token + 1)).map(coordinate).collect();
        let length = point.iter().map(|x| x * x).sum::<f32>().sqrt();
        point.into_iter().map(move |x| x / length)
    };
    let points: Vec<f32> = (0..seqlen).flat_map(unit).collect();
    let queries = (0..seqlen * 64).map(|i| sharpness * points[i.saturating_sub(64)]);
    archive.tensors.get_mut("q").unwrap().data = T::wrap(queries.map(T::from_f32).collect());
    archive.tensors.get_mut("k").unwrap().data = T::wrap(points.iter().map(|&x| T::from_f32(x)).collect());
    archive.tensors.remove("dout");
    archive
}

#[test]
fn a_head_that_attends_to_the_token_before_shows_its_diagonal_at_any_length() {
    let dir = Dir::new();
    let (name, path) = (dir.file("in.safetensors"), dir.file("map.png"));
    for seqlen in [40, 3000] {
        write(&name, &previous_token::<f32>(seqlen, 60.0));
        for bin in ["mean", "max"] {
            succeed(&["attend", &name, "--plot", &path, "--bin", bin]);
            let picture = Picture::of(&path);
            // Not where a query and the token before it are of two cells.
            for share in [0.2005, 0.5005, 0.8005] {
                let on = luma(picture.map(share - 0.5 / seqlen as f64, share + 0.5 / seqlen as f64));
                assert!(on > 150.0, "{seqlen}, {bin}: the diagonal is dark, {on}");
                for away in [0.1, 0.19, -0.13] {
                    let off = luma(picture.map(share + away, share));
                    assert!(off < 40.0, "{seqlen}, {bin}: the rest shines, {off}");
                }
            }
        }
    }
}

#[test]
fn attention_to_the_first_token_is_seen_between_the_frame_and_the_rest() {
    for seqlen in [300, 2000, 3001] {
        let rest = 0.1 / (seqlen - 1) as f32;
        let picture = plot(seqlen, seqlen, &[], |_, key| if key == 0 { 0.9 } else { rest });
        let y = picture.rows.start + picture.rows.len() / 2;
        // At half its size, as most screens show it, each pixel is the mean of four.
        let half = |x: usize| (luma(picture.at(x, y)) + luma(picture.at(x + 1, y))) / 2.0;
        let x = picture.columns.start;
        assert!(half(x) > half(x - 2) + 100.0 && half(x - 2) < 60.0, "{seqlen}: {} {}", half(x - 2), half(x));
        assert!(half(x) > half(x + 20) + 60.0, "{seqlen}: {} {}", half(x), half(x + 20));
    }
}

#[test]
fn entries_of_nothing_do_not_shine_whatever_is_largest() {
    for largest in [1.0, 0.01, 1e-6] {
        let p = |query: usize, key: usize| if query == key { largest } else { largest * 1e-18 };
        let picture = plot(50, 50, &[], p);
        assert!(luma(picture.map(0.51, 0.51)) > 150.0 && picture.map(0.51, 0.11) == DARK[0]);
    }
}

#[test]
fn nan_has_a_color_of_its_own_and_a_line_in_the_legend() {
    let p = |query: usize, _| if query == 2 { f32::NAN } else { 0.2 };
    let picture = plot(5, 5, &[], p);
    let (width, height) = (picture.columns.len(), picture.rows.len());
    assert!((0..5).all(|key| picture.map(key as f64 / 5.0 + 0.1, 0.5) == NOT_A_NUMBER));
    assert!((0..5).all(|key| picture.map(key as f64 / 5.0 + 0.1, 0.7) != NOT_A_NUMBER));
    assert_eq!(picture.count(NOT_A_NUMBER), width * height / 5 + 32 * 32);
    assert_eq!(plot(5, 5, &[], |_, _| 0.2).count(NOT_A_NUMBER), 0);
    // One among nine million is seen as well.
    let picture = plot(3000, 3000, &[], |query, key| if (query, key) == (7, 2000) { f32::NAN } else { 3e-4 });
    assert!(picture.count(NOT_A_NUMBER) >= 32 * 32 + 4);
}

#[test]
fn a_query_of_nan_is_drawn_as_such_by_attend_too() {
    let dir = Dir::new();
    let (name, path) = (dir.file("in.npz"), dir.file("map.png"));
    let mut archive = input::<f32>([1, 1, 8, 16], [1, 1, 8, 16], &[("dropout_p", "0.5")]);
    let Data::F32(q) = &mut archive.tensors.get_mut("q").unwrap().data else { unreachable!() };
    q[16 * 3..16 * 4].fill(f32::NAN);
    write(&name, &archive);
    succeed(&["attend", &name, "--plot", &path]);
    let picture = Picture::of(&path);
    assert!((0..8).all(|key| picture.map(key as f64 / 8.0 + 0.06, 3.5 / 8.0) == NOT_A_NUMBER));
    assert_eq!(picture.count(NOT_A_NUMBER), picture.columns.len() * picture.rows.len() / 8 + 32 * 32);
}

#[test]
fn zeros_are_dark_and_say_whether_they_were_dropped() {
    let picture = plot(10, 10, &[], |query, _| if query < 5 { 0.0 } else { -0.0 });
    assert_eq!([0.25, 0.75].map(|query| picture.map(0.5, query)), DARK);
}

#[test]
fn a_causal_diagonal_is_told_apart_from_what_is_hidden() {
    let dir = Dir::new();
    let (name, path) = (dir.file("in.safetensors"), dir.file("map.png"));
    // 300 queries of 200 keys: the first hundred see nothing, the last key of each row is the whole of it.
    let mut archive =
        input::<f32>([1, 1, 300, 4], [1, 1, 200, 4], &[("causal", "true"), ("softmax_scale", "1")]);
    let Data::F32(q) = &mut archive.tensors.get_mut("q").unwrap().data else { unreachable!() };
    (0..q.len()).for_each(|i| q[i] = f32::from(u8::from(i % 4 == 0)));
    let Data::F32(k) = &mut archive.tensors.get_mut("k").unwrap().data else { unreachable!() };
    (0..k.len()).for_each(|i| k[i] = if i % 4 == 0 { 10.0 * (i / 4) as f32 } else { 0.0 });
    write(&name, &archive);
    succeed(&["attend", &name, "--plot", &path]);
    let picture = Picture::of(&path);
    assert_eq!([picture.map(0.5, 0.2), picture.map(0.9, 0.7)], [HIDDEN; 2]);
    let on = picture.map(99.5 / 200.0, 199.5 / 300.0);
    assert!(luma(on) > luma(HIDDEN) + 40.0 && picture.map(0.25, 199.5 / 300.0) == DARK[0], "{on:?}");
}

#[test]
fn long_maps_fill_their_picture_and_have_numbers() {
    for (queries, keys) in [(1, 1), (1, 3000), (3000, 1), (20, 3000), (3000, 20), (20, 20), (7, 3)] {
        let picture = plot(queries, keys, &[], |_, _| 1.0 / keys as f32);
        let map = picture.columns.len() * picture.rows.len();
        let share = map as f64 / (picture.width * picture.height) as f64;
        assert!(share > 0.22, "{queries} x {keys}: {share:.2} of the picture is map");
        let ticks = (picture.ticks_of_queries(), picture.ticks_of_keys());
        assert!(ticks.0 >= queries.min(3) && ticks.1 >= keys.min(3), "{queries} x {keys}: {ticks:?}");
    }
}

#[test]
fn drawing_at_once_and_drawing_from_probs_give_the_same_picture() {
    let dir = Dir::new();
    fs::copy(vector(VECTORS[2]), dir.path("map.safetensors")).unwrap();
    let (input, probs) = (dir.file("map.safetensors"), dir.file("map.npz"));
    let (once, later) = (dir.file("once.png"), dir.file("later.png"));
    let view = ["--head", "1", "--batch", "1"];
    succeed(&[&["attend", &input, "--plot", &once, "--probs", "-o", &probs], &view[..]].concat());
    assert!(
        succeed(&[&["plot", &probs, "-o", &later], &view[..]].concat()).contains("drew head 1 of batch 1")
    );
    assert!(fs::read(&once).unwrap() == fs::read(&later).unwrap());
    let other = dir.file("other.png");
    succeed(&["plot", &probs, "-o", &other]);
    assert!(fs::read(&once).unwrap() != fs::read(&other).unwrap());
}

#[test]
fn pictures_have_colors_for_kept_dropped_and_hidden_and_some_letters() {
    let dir = Dir::new();
    let path = dir.file("map.png");
    succeed(&["attend", &vector(VECTORS[4]), "--plot", &path]);
    let (width, height, pixels) = png(path.as_ref());
    assert_eq!(pixels.len(), width * height * 3);
    let count =
        |wanted: &dyn Fn(&[u8; 3]) -> bool| pixels.as_chunks::<3>().0.iter().filter(|p| wanted(p)).count();
    let [hidden, ink] = [HIDDEN, INK].map(|color| count(&|pixel| *pixel == color));
    let red = count(&|[r, g, b]| i32::from(*r) > i32::from(*g).max(i32::from(*b)) + 40);
    let blue = count(&|[r, g, b]| i32::from(*r) + 40 < i32::from(*g).max(i32::from(*b)));
    assert!(hidden > width * height / 5, "{hidden}");
    assert!(red > width * height / 20 && blue > width * height / 20, "{red} {blue}");
    assert!(ink > 2000, "no letters: {ink}");
}

#[test]
fn extreme_shapes_can_be_drawn() {
    let dir = Dir::new();
    for (seqlen_q, seqlen_k) in [(1, 1), (1, 3000), (3000, 1), (2, 1700), (7, 3)] {
        let (name, picture) = (dir.file("in.safetensors"), dir.file("map.png"));
        let settings = [("dropout_p", "0.5"), ("causal", "true")];
        write(&name, &input::<f32>([1, 1, seqlen_q, 4], [1, 1, seqlen_k, 4], &settings));
        succeed(&["attend", &name, "--plot", &picture]);
        let (width, height, _) = png(picture.as_ref());
        assert!((800..2400).contains(&width) && (800..2200).contains(&height), "{width} x {height}");
    }
}

#[test]
fn empty_maps_and_absent_heads_are_refused_before_anything_is_drawn() {
    let dir = Dir::new();
    let (name, picture) = (dir.file("in.safetensors"), dir.file("map.png"));
    write(&name, &input::<f32>([1, 2, 0, 4], [1, 2, 3, 4], &[]));
    fail(&["attend", &name, "--plot", &picture], 2, &["at least one entry", "0 queries"]);
    assert_eq!(dir.names(), ["in.safetensors"]);
}

/// Numbers of cu_seqlens_q and cu_seqlens_k: three sequences of (30, 20), (10, 40) and (20, 20).
fn packed() -> Archive {
    let settings = [("dropout_p", "0.3"), ("window", "25,6")];
    let mut archive = input::<f32>([0; 4], [0; 4], &settings);
    for (name, tokens, salt) in [("q", 60, 1), ("k", 80, 2), ("v", 80, 3)] {
        archive.tensors.insert(name.into(), tensor::<f32>(&[tokens, 2, 8], salt));
    }
    archive.tensors.remove("dout");
    for (name, numbers) in [("cu_seqlens_q", [0, 30, 40, 60]), ("cu_seqlens_k", [0, 20, 60, 80])] {
        archive.tensors.insert(name.into(), Tensor { shape: vec![4], data: Data::I32(numbers.into()) });
    }
    archive
}

#[test]
fn packed_sequences_are_blocks_and_a_window_is_a_band() {
    let dir = Dir::new();
    let (name, probs) = (dir.file("map.npz"), dir.file("map.safetensors"));
    let (once, later) = (dir.file("once.png"), dir.file("later.png"));
    write(&name, &packed());
    succeed(&["attend", &name, "--probs", "-o", &probs, "--plot", &once, "--head", "1"]);
    succeed(&["plot", &probs, "-o", &later, "--head", "1"]);
    assert!(fs::read(&once).unwrap() == fs::read(&later).unwrap());
    let picture = Picture::of(&once);
    for (query, key, visible) in [
        (25, 10, true), // of the first sequence, whose query 29 faces key 19
        (25, 25, false),
        (5, 1, true),
        (2, 5, false),   // it faces key -8, and sees 6 behind that
        (35, 50, true),  // of the second, where query 30 faces key 50
        (35, 25, false), // 25 keys before are the last
        (35, 10, false),
        (50, 70, true),
        (50, 78, false),
    ] {
        let seen = picture.map((f64::from(key) + 0.5) / 80.0, (f64::from(query) + 0.5) / 60.0) != HIDDEN;
        assert_eq!(seen, visible, "query {query}, key {key}");
    }
    let corner = ["--queries", "0..10", "--keys", "60..70"];
    succeed(&[&["plot", &probs, "-o", &later][..], &corner].concat());
    let hidden = Picture::of(&later);
    // Nothing of that corner is seen: the map, and the square of the legend.
    assert!(hidden.count(HIDDEN) >= hidden.columns.len() * hidden.rows.len());
}

#[test]
fn probs_that_are_not_of_their_sequences_are_refused() {
    let dir = Dir::new();
    let (name, probs, picture) = (dir.file("in.npz"), dir.file("probs.npz"), dir.file("map.png"));
    write(&name, &packed());
    succeed(&["attend", &name, "--probs", "-o", &probs]);
    let mut archive = crate::common::read(&probs);
    archive
        .tensors
        .insert("cu_seqlens_q".into(), Tensor { shape: vec![4], data: Data::I32(vec![0, 20, 40, 60]) });
    write(&probs, &archive);
    let needles = ["probs has shape [3, 2, 30, 40]", "[3, 2, 20, 40] (by cu_seqlens_q and cu_seqlens_k)"];
    fail(&["plot", &probs, "-o", &picture], 2, &needles);
    fail(&["attend", &name, "--plot", &picture, "--batch", "1"], 2, &["--batch must be below 1"]);
}

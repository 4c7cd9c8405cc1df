//! What comes from outside, in messages: short, on one line, and nothing that a terminal would obey.

use crate::settings::window;
use signflash_core::{Feature, Problem, Window};
use std::path::Path;

/// Characters of a message.
const MAX_LINE: usize = 2000;
/// Characters of a path.
const MAX_PATH: usize = 300;
/// Sizes of a shape.
const MAX_SIZES: usize = 8;

/// A path.
pub fn path(path: &Path) -> String {
    shortened(&path.to_string_lossy().chars().flat_map(harmless).collect::<String>(), MAX_PATH)
}

/// A message as one line.
pub fn line(message: &str) -> String {
    let words = message.replace('\n', " ");
    shortened(&words.chars().flat_map(harmless).collect::<String>(), MAX_LINE)
}

/// Sizes, the first of them if there are many.
pub fn shape(sizes: &[usize]) -> String {
    if sizes.len() <= MAX_SIZES {
        return format!("{sizes:?}");
    }
    let first: Vec<String> = sizes[..MAX_SIZES].iter().map(usize::to_string).collect();
    format!("[{}, ... ({} dimensions)]", first.join(", "), sizes.len())
}

/// What is seen of a problem's keys, where it is not all of them: packed sequences, causal or another window; and what else
/// becomes of scores.
pub fn seen(problem: &Problem) -> Vec<String> {
    let packed = problem.is_packed().then(|| match problem.sequence_count() {
        1 => "1 packed sequence".to_string(),
        count => format!("{count} packed sequences"),
    });
    let window = match problem.window() {
        Window::FULL => None,
        Window::CAUSAL => Some("causal".to_string()),
        other => Some(format!("window {}", window::write(other))),
    };
    let scores = problem.features().filter_map(|feature| match feature {
        Feature::Softcap => problem.softcap().map(|cap| format!("softcap {cap}")),
        Feature::HeadDimV => None, // the shapes say it
        other => Some(other.to_string()),
    });
    packed.into_iter().chain(window).chain(scores).collect()
}

/// Beginning and end of what is longer than `max` characters.
fn shortened(text: &str, max: usize) -> String {
    let length = text.chars().count();
    if length <= max {
        return text.to_string();
    }
    let (head, tail) = (max / 2, max / 2 - 3);
    let head: String = text.chars().take(head).collect();
    let tail: String = text.chars().skip(length - tail).collect();
    format!("{head}...{tail}")
}

/// The character, or its escape if it would move the cursor, change colors or turn the direction of reading.
fn harmless(c: char) -> impl Iterator<Item = char> {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let (escaped, kept) =
        if c.is_control() || turns { (Some(c.escape_default()), None) } else { (None, Some(c)) };
    escaped.into_iter().flatten().chain(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_see_no_control_characters() {
        assert_eq!(path(Path::new("a\u{1b}[31m\nb\u{202e}ü.npz")), "a\\u{1b}[31m\\nb\\u{202e}ü.npz");
        assert_eq!(line("one\ntwo\rthree\u{9b}"), "one two\\rthree\\u{9b}");
    }

    #[test]
    fn nothing_is_longer_than_a_reader_has_patience() {
        let long = "x".repeat(100_000);
        assert!(line(&long).len() <= MAX_LINE && path(Path::new(&long)).len() <= MAX_PATH);
        assert_eq!(shape(&[1; 100_000]), "[1, 1, 1, 1, 1, 1, 1, 1, ... (100000 dimensions)]");
        assert_eq!(shape(&[2, 3]), "[2, 3]");
    }
}

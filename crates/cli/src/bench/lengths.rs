//! The lengths of packed sequences, as `--lengths` says them: `2048x8`, `20..512x64`, `1..2048/16384`.

use super::random::Random;
use std::iter::repeat_with;
use std::str::FromStr;

/// More sequences, or tokens, are no benchmark.
const MOST: usize = 1 << 30;

/// Lengths before they are drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// As the command line says it.
    pub text: String,
    parts: Vec<Part>,
}

/// Some of the sequences: each between these lengths, drawn one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    least: u32,
    most: u32,
    until: Until,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Until {
    /// There are so many.
    Count(usize),
    /// They have so many tokens together; the last one is cut.
    Tokens(usize),
}

impl FromStr for Lengths {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split('+').map(|part| Part::parse(part.trim())).collect::<Option<Vec<_>>>();
        parts.map(|parts| Self { text: text.to_string(), parts }).ok_or_else(|| {
            "expected lengths of packed sequences: 512 for one, 2048x8 for eight, 20..512x64 for 64 from 20 to 512, \
             1..2048/16384 for so many as have 16384 tokens; + between several"
                .to_string()
        })
    }
}

impl Part {
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.trim().parse::<usize>().ok().filter(|&number| number <= MOST);
        let (lengths, until) = match (text.split_once('x'), text.split_once('/')) {
            (Some((lengths, count)), None) => (lengths, Until::Count(number(count)?)),
            (None, Some((lengths, tokens))) => (lengths, Until::Tokens(number(tokens)?)),
            _ => (text, Until::Count(1)),
        };
        let (least, most) = lengths.split_once("..").unwrap_or((lengths, lengths));
        let (least, most) = (number(least)? as u32, number(most)? as u32);
        // Sequences of nothing never have so many tokens.
        let ends = most > 0 || matches!(until, Until::Count(_));
        (least <= most && ends).then_some(Self { least, most, until })
    }

    fn draw(self, random: &mut Random, lengths: &mut Vec<u32>) {
        let mut next = || random.within(self.least, self.most);
        match self.until {
            Until::Count(count) => lengths.extend(repeat_with(next).take(count)),
            Until::Tokens(mut left) => {
                while left > 0 {
                    let length = (next() as usize).min(left);
                    left -= length;
                    lengths.push(length as u32);
                }
            }
        }
    }
}

impl Lengths {
    /// The lengths that a seed gives.
    pub fn draw(&self, seed: u64) -> Vec<u32> {
        let (mut random, mut lengths) = (Random::new(seed), Vec::new());
        self.parts.iter().for_each(|part| part.draw(&mut random, &mut lengths));
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(text: &str) -> Vec<u32> {
        text.parse::<Lengths>().unwrap().draw(7)
    }

    #[test]
    fn lengths_are_what_the_text_says() {
        assert_eq!(drawn("5"), [5]);
        assert_eq!(drawn("2048x3"), [2048; 3]);
        assert_eq!(drawn("0x2+7+3..3x2"), [0, 0, 7, 3, 3]);
        assert_eq!(drawn("6/20"), [6, 6, 6, 2]);
        let bert = drawn("20..512x64");
        assert!(bert.len() == 64 && bert.iter().all(|length| (20..=512).contains(length)));
        let tokens: u32 = drawn("1..2048/16384").iter().sum();
        assert_eq!(tokens, 16384);
    }

    #[test]
    fn a_seed_gives_the_same_lengths_and_another_seed_others() {
        let lengths: Lengths = "1..2048/16384".parse().unwrap();
        assert_eq!(lengths.draw(0), lengths.draw(0));
        assert_ne!(lengths.draw(0), lengths.draw(1));
        let mean = drawn("1..100x20000").iter().map(|&length| f64::from(length)).sum::<f64>() / 20000.0;
        assert!((mean - 50.5).abs() < 1.0, "{mean}");
    }

    #[test]
    fn what_says_no_lengths_is_refused() {
        for text in ["", "x", "5x", "9..3x4", "0/7", "3x4/5", "-1", "5..", "99999999999", "2048x8,"] {
            assert!(text.parse::<Lengths>().is_err(), "{text}");
        }
    }
}

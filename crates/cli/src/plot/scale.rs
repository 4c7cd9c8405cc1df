//! Which magnitude is how bright: a logarithmic scale, because attention spans decades.

/// What the entries darker than the scale's dark end may hold together, as a share of the map's probability.
const DARKEST_HOLD: f64 = 0.001;

/// A logarithmic scale.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    /// This and less is darkest.
    pub(super) dark: f32,
    /// The brightest; nothing in the map is larger.
    pub(super) bright: f32,
    /// The share of the map's probability that is darkest; `None` if there is no probability at all.
    pub(super) darkest_hold: Option<f64>,
}

impl Scale {
    /// The scale of a map, from pairs of a magnitude and the probability that lies there.
    ///
    /// Its bright end is the largest magnitude: in a long map the few largest are the attention, not outliers. Its
    /// dark end is chosen by probability, not by number: what is darker is one part in a thousand of all, so
    /// millions of entries that hold nothing cannot shine, and a faint background that holds much stays visible.
    pub(super) fn of(mut masses: Vec<(f32, f64)>) -> Self {
        masses.retain(|&(magnitude, _)| magnitude > 0.0);
        masses.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let Some(&(largest, _)) = masses.last() else {
            return Self { dark: 1e-4, bright: 1.0, darkest_hold: None };
        };
        let total: f64 = masses.iter().map(|&(_, mass)| mass).sum();
        let mut below = 0.0;
        let reaches = |&(_, mass): &(f32, f64)| {
            below += mass;
            below >= DARKEST_HOLD * total
        };
        let smallest_shown = masses.iter().copied().find(reaches).map_or(largest, |(magnitude, _)| magnitude);
        // A step above the darkest, for it is shown. Equal magnitudes (one key, say) need a scale to stand on, too.
        let mut scale = Self::rounded((smallest_shown / 2.0).min(largest / 10.0), largest);
        let darkest = masses.iter().take_while(|&&(magnitude, _)| magnitude <= scale.dark);
        scale.darkest_hold = Some(darkest.fold(0.0, |sum, &(_, mass)| sum + mass) / total);
        scale
    }

    /// Where a magnitude lies, from 0 (darkest) to 1.
    pub(super) fn level(&self, magnitude: f32) -> f32 {
        // In f64, where quotients of denormal numbers are numbers.
        let (magnitude, dark, bright) = (f64::from(magnitude), f64::from(self.dark), f64::from(self.bright));
        ((magnitude / dark).ln() / (bright / dark).ln()).clamp(0.0, 1.0) as f32
    }

    /// The scale from `dark` to `bright`, widened to round numbers.
    fn rounded(dark: f32, bright: f32) -> Self {
        let all = || (-45..39).flat_map(|decade| [1, 2, 5].map(|digit| round(digit, decade)));
        let usable = || all().filter(|x| *x > 0.0 && x.is_finite());
        let smallest = 1e-44;
        let dark = usable().take_while(|&x| x <= dark * 1.001).last().unwrap_or(0.0).max(smallest);
        let bright = usable().find(|&x| x >= bright * 0.999).unwrap_or(bright);
        // Among the smallest numbers there are no others between.
        let bright = if bright > dark { bright } else { 10.0 * dark };
        Self { dark, bright, darkest_hold: None }
    }

    /// Round magnitudes within the scale, its ends among them, at most about `most`: 1, 2, 5 of each decade, or 1 of
    /// every, every second, every third decade.
    pub(super) fn ticks(&self, most: usize) -> Vec<f32> {
        let decades = (f64::from(self.bright) / f64::from(self.dark)).log10();
        let fits = |a_decade: f64| decades * a_decade < most as f64;
        let digits: &[u8] = if fits(3.0) { &[1, 2, 5] } else { &[1] };
        let step = (1..).find(|&step| fits(1.0 / f64::from(step))).unwrap_or(1);
        let first = self.dark.log10().floor() as i32;
        let last = self.bright.log10().ceil() as i32;
        // Counted from the bright end, where one looks first.
        let all = (first..=last)
            .filter(|decade| (last - decade) % step == 0)
            .flat_map(|decade| digits.iter().map(move |&digit| round(digit, decade)));
        // A tick too near an end would touch its number.
        let room = 0.8 / most as f32;
        let inside = |&x: &f32| (room..=1.0 - room).contains(&self.level(x));
        let mut ticks: Vec<f32> = all.filter(inside).collect();
        ticks.insert(0, self.dark);
        ticks.push(self.bright);
        ticks
    }
}

/// The number nearest to digit * 10^decade, so that it prints as such.
fn round(digit: u8, decade: i32) -> f32 {
    format!("{digit}e{decade}").parse().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_ends_at_round_numbers() {
        let scale = Scale::rounded(0.0012, 0.043);
        assert_eq!((scale.dark, scale.bright), (0.001, 0.05));
        assert_eq!(scale.ticks(12), [0.001, 0.002, 0.005, 0.01, 0.02, 0.05]);
        assert_eq!(Scale::rounded(0.1, 1.0).ticks(12), [0.1, 0.2, 0.5, 1.0]);
        assert_eq!(Scale::rounded(1e-4, 1.0).ticks(12), [1e-4, 1e-3, 1e-2, 1e-1, 1.0]);
        assert_eq!(Scale::rounded(1e-9, 1.0).ticks(6), [1e-9, 1e-6, 1e-4, 1e-2, 1.0]);
    }

    #[test]
    fn few_large_entries_are_no_outliers() {
        // 6000 of 36 million hold everything, as where each query attends to the one before it.
        let mut masses = vec![(1e-18, 1e-18); 100_000];
        masses.extend([(0.989, 0.989); 20]);
        let scale = Scale::of(masses);
        assert_eq!((scale.level(1e-18), scale.bright), (0.0, 1.0));
        assert!(scale.level(0.989) > 0.99);
        assert!(scale.darkest_hold.unwrap() < 1e-12);
    }

    #[test]
    fn a_faint_background_that_holds_much_is_not_darkest() {
        let mut masses = vec![(1e-6, 1e-6); 100_000];
        masses.push((0.9, 0.9));
        let scale = Scale::of(masses);
        assert_eq!((scale.dark, scale.bright), (5e-7, 1.0));
        assert!(scale.level(1e-6) > 0.03);
        assert_eq!(scale.darkest_hold, Some(0.0));
        let one_more = Scale::of(vec![(1e-6, 1e-4), (0.3, 0.9), (0.4, 0.1)]);
        assert_eq!((one_more.level(1e-6), one_more.bright), (0.0, 0.5));
    }

    #[test]
    fn every_map_has_a_scale() {
        for masses in [vec![], vec![(0.0, 0.0)]] {
            let scale = Scale::of(masses);
            assert_eq!((scale.level(0.0), scale.level(1.0), scale.darkest_hold), (0.0, 1.0, None));
        }
        let equal = Scale::of(vec![(0.01, 1.0)]);
        assert_eq!((equal.dark, equal.bright), (0.001, 0.01), "an end that is no round number");
        for only in [1.0, 1e-45, 1e-38, 3e38, f32::MAX] {
            let scale = Scale::of(vec![(only, f64::from(only))]);
            assert!(scale.dark > 0.0 && scale.dark < scale.bright, "{scale:?}");
            assert!(
                (0.0..=1.0).contains(&scale.level(only)) && scale.ticks(8).iter().all(|x| x.is_finite()),
                "{scale:?}"
            );
        }
    }
}

//! Counts of durations, to within three parts in a hundred.

/// Parts of each power of two.
const PARTS: u32 = 32;

/// How often a duration came, by its nanoseconds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    greatest: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; (64 * PARTS) as usize], greatest: 0 }
    }
}

impl Histogram {
    /// Count one.
    pub fn add(&mut self, ns: u64) {
        let bits = (ns | 1).ilog2().saturating_sub(PARTS.ilog2());
        let at = u64::from(bits * PARTS) + (ns >> bits);
        self.counts[at as usize] += 1;
        self.greatest = self.greatest.max(ns);
    }

    /// Count another's too.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        self.greatest = self.greatest.max(other.greatest);
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The greatest, in nanoseconds.
    pub const fn greatest(&self) -> u64 {
        self.greatest
    }

    /// The nanoseconds that this part of them, from 0 to 1, does not exceed.
    pub fn quantile(&self, part: f64) -> u64 {
        let mut left = (self.count() as f64 * part).ceil() as u64;
        for (at, &count) in self.counts.iter().enumerate() {
            if left <= count {
                let (at, parts) = (at as u64, u64::from(PARTS));
                let bits = (at / parts).saturating_sub(1);
                return (((at - bits * parts + 1) << bits) - 1).min(self.greatest);
            }
            left -= count;
        }
        self.greatest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_near() {
        let mut histogram = Histogram::default();
        let mut random = fastrand::Rng::with_seed(1);
        let mut all: Vec<u64> = (0..10_000)
            .map(|_| {
                let bits = random.u32(1..40);
                random.u64(..1 << bits)
            })
            .collect();
        all.iter().for_each(|&ns| histogram.add(ns));
        all.sort_unstable();
        for part in [0.01, 0.5, 0.9, 0.999, 1.0] {
            let exact = all[((part * 10_000.0) as usize).saturating_sub(1)];
            let (low, high) = (exact, exact + exact / 30 + 1);
            assert!((low..=high).contains(&histogram.quantile(part)), "{part}: {exact}");
        }
        assert_eq!((histogram.count(), histogram.greatest()), (10_000, all[9999]));
    }
}

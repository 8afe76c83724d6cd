//! Operations that a seed repeats, and the model of what they leave.
//!
//! Each thread has a stream of operations of its own, on keys of its own; numbers are added to by all, which commutes.
//! So what a table holds depends only on how many operations each thread has done: these counts go into an image as the
//! program's state, and a model that repeats as many says what the image must hold. It shares nothing with the table
//! but the streams.

use std::collections::HashMap;

/// What streams are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Of all streams.
    pub seed: u64,
    /// Streams.
    pub threads: u32,
    /// Keys, of all threads together.
    pub keys: u64,
    /// Bytes of a value.
    pub value: u32,
    /// Values have any length up to `value`.
    pub varies: bool,
    /// Of a hundred operations, those that write.
    pub writes: u32,
}

/// An operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Look a key up.
    Get(u64),
    /// Set a key to the value of this number.
    Set(u64, u64),
    /// Remove a key.
    Del(u64),
    /// Add to a number.
    Add(u64, i64),
}

/// How many numbers there are.
const NUMBERS: u64 = 64;

/// A bijection of words that leaves no pattern.
const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// Ranks drawn so that rank r comes with a probability proportional to 1 / (r + 1)^0.99: Gray et al., "Quickly
/// Generating Billion-Record Synthetic Databases" (SIGMOD 1994), as YCSB has it.
#[derive(Clone, Copy, Debug)]
struct Zipf {
    n: f64,
    zeta: f64,
    eta: f64,
}

impl Zipf {
    const THETA: f64 = 0.99;

    fn new(n: u64) -> Self {
        let zeta = |n: u64| (1..=n).map(|i| (i as f64).powf(-Self::THETA)).sum::<f64>();
        let (zeta_n, count) = (zeta(n), n as f64);
        let eta = (1.0 - (2.0 / count).powf(1.0 - Self::THETA)) / (1.0 - zeta(2) / zeta_n);
        Self { n: count, zeta: zeta_n, eta }
    }

    fn rank(&self, random: &mut fastrand::Rng) -> u64 {
        let u = random.f64();
        let scaled = u * self.zeta;
        if scaled < 1.0 {
            return 0;
        }
        if scaled < 1.0 + 0.5_f64.powf(Self::THETA) {
            return 1;
        }
        (self.n * (self.eta * u - self.eta + 1.0).powf(1.0 / (1.0 - Self::THETA))) as u64
    }
}

/// A thread's operations.
#[derive(Clone, Debug)]
pub struct Stream {
    of: Workload,
    thread: u32,
    zipf: Zipf,
    random: fastrand::Rng,
    done: u64,
}

impl Workload {
    /// The stream of a thread, from its beginning.
    pub fn stream(&self, thread: u32) -> Stream {
        let random = fastrand::Rng::with_seed(mix(self.seed ^ mix(u64::from(thread) + 1)));
        Stream { of: *self, thread, zipf: Zipf::new(self.keys_of_a_thread()), random, done: 0 }
    }

    fn keys_of_a_thread(&self) -> u64 {
        (self.keys / u64::from(self.threads)).max(2)
    }

    /// The keys that are set before the streams begin: all, each to a value of a number that no stream sets.
    pub fn first(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        (0..self.keys_of_a_thread() * u64::from(self.threads)).map(|key| (key, u64::MAX - key))
    }

    /// The name of a key.
    pub fn key(key: u64) -> Vec<u8> {
        format!("key:{key:010}").into_bytes()
    }

    /// The name of a number.
    pub fn number(number: u64) -> Vec<u8> {
        format!("number:{number}").into_bytes()
    }

    /// The value of a number.
    pub fn value(&self, number: u64, into: &mut Vec<u8>) {
        into.clear();
        let mut word = mix(self.seed ^ mix(number));
        let len = if self.varies { word % (u64::from(self.value) + 1) } else { self.value.into() } as usize;
        while into.len() < len {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            into.extend_from_slice(&(word ^ word >> 29).to_le_bytes());
        }
        into.truncate(len);
    }

    /// With the counts of operations: what goes into an image.
    pub fn encode(&self, counts: &[u64], into: &mut Vec<u8>) {
        let (threads, value) = (self.threads.into(), self.value.into());
        let words = [self.seed, threads, self.keys, value, self.varies.into(), self.writes.into()];
        words.iter().chain(counts).for_each(|word| into.extend(word.to_le_bytes()));
    }

    /// What [`encode`](Self::encode) has made.
    pub fn decode(state: &[u8]) -> Option<(Self, Vec<u64>)> {
        let mut words = state.chunks_exact(8).map(|bytes| bytes.try_into().map_or(0, u64::from_le_bytes));
        let mut next = || words.next();
        let workload = Self {
            seed: next()?,
            threads: next()?.try_into().ok()?,
            keys: next()?,
            value: next()?.try_into().ok()?,
            varies: next()? != 0,
            writes: next()?.try_into().ok()?,
        };
        let counts: Vec<u64> = words.collect();
        (workload.threads > 0 && counts.len() == workload.threads as usize).then_some((workload, counts))
    }

    /// What a table holds after so many operations of each thread, and a difference to what `all` hands out, if there
    /// is one.
    pub fn compare(
        &self,
        counts: &[u64],
        all: impl FnOnce(&mut dyn FnMut(&[u8], &[u8])),
    ) -> Result<u64, String> {
        let mut values: HashMap<u64, u64> = self.first().collect();
        let mut numbers: HashMap<u64, i64> = HashMap::new();
        for (thread, &count) in counts.iter().enumerate() {
            for operation in self.stream(thread as u32).take(count as usize) {
                match operation {
                    Operation::Get(_) => {}
                    Operation::Set(key, number) => _ = values.insert(key, number),
                    Operation::Del(key) => _ = values.remove(&key),
                    Operation::Add(number, by) => *numbers.entry(number).or_default() += by,
                }
            }
        }
        let mut model: HashMap<Vec<u8>, Result<u64, i64>> =
            values.into_iter().map(|(key, number)| (Self::key(key), Ok(number))).collect();
        model.extend(numbers.into_iter().map(|(number, sum)| (Self::number(number), Err(sum))));
        let count = model.len() as u64;
        let mut wrong = None;
        let mut want = Vec::new();
        all(&mut |key, value| {
            let name = String::from_utf8_lossy(key).into_owned();
            match model.remove(key) {
                None => _ = wrong.get_or_insert(format!("{name} is there, or twice, and should not be")),
                Some(Ok(number)) => {
                    self.value(number, &mut want);
                    if want != value {
                        wrong.get_or_insert(format!("{name} has another value"));
                    }
                }
                Some(Err(sum)) if sum.to_string().as_bytes() == value => {}
                Some(Err(sum)) => _ = wrong.get_or_insert(format!("{name} is not {sum}")),
            }
        });
        match (wrong, model.keys().next()) {
            (Some(wrong), _) => Err(wrong),
            (None, Some(key)) => Err(format!("{} is missing", String::from_utf8_lossy(key))),
            (None, None) => Ok(count),
        }
    }
}

impl Stream {
    /// Leave so many operations out.
    pub fn skip_done(&mut self, count: u64) {
        (0..count).for_each(|_| _ = self.next());
    }
}

impl Iterator for Stream {
    type Item = Operation;

    fn next(&mut self) -> Option<Operation> {
        let number = u64::from(self.thread) << 48 | self.done;
        self.done += 1;
        let keys = self.of.keys_of_a_thread();
        // Popular keys are not neighbours.
        let key = mix(self.zipf.rank(&mut self.random)) % keys * u64::from(self.of.threads)
            + u64::from(self.thread);
        let writes = self.random.u32(..100) < self.of.writes;
        Some(match self.random.u32(..100) {
            _ if !writes => Operation::Get(key),
            0..2 => Operation::Add(self.random.u64(..NUMBERS), self.random.i64(-9..100)),
            2 => Operation::Del(key),
            _ => Operation::Set(key, number),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_keys_get_most_operations_and_states_come_back() {
        let workload = Workload { seed: 5, threads: 2, keys: 1000, value: 9, varies: true, writes: 50 };
        let mut counts = HashMap::new();
        for operation in workload.stream(1).take(20_000) {
            if let Operation::Get(key) | Operation::Set(key, _) = operation {
                assert!(key % 2 == 1 && key < 1000);
                *counts.entry(key).or_insert(0_u32) += 1;
            }
        }
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let share = |n: usize| f64::from(counts[..n].iter().sum::<u32>()) / 20_000.0;
        // The harmonic sums of 0.99: about 0.15 for one of 500, 0.45 for ten.
        assert!(
            (0.12..0.2).contains(&share(1)) && (0.38..0.55).contains(&share(10)),
            "{} {}",
            share(1),
            share(10)
        );
        assert!(counts.len() > 250);
        let mut state = Vec::new();
        workload.encode(&[7, 8], &mut state);
        assert_eq!(Workload::decode(&state), Some((workload, vec![7, 8])));
        assert_eq!(Workload::decode(&state[..40]), None);
    }
}

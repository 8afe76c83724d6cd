//! From counts to modelled throughput.
//!
//! **Claim.** Given what one operation costs on each CPU, counted (instructions, cache lines that moved between CPUs,
//! inter-processor interrupts), and published prices for each, the throughput per CPU follows, and with it the shape of
//! the curve against the number of CPUs. What bends the curve is named: the line for which the CPUs queue.
//!
//! **Idea.** A CPU alternates between work of its own and transfers of lines. Work of its own takes as long with many
//! CPUs as with one. A line, however, moves one transfer at a time, each of them a journey through the interconnect: the
//! line's home, the directory entry or cache slice that orders its transfers, is a server with a queue. N CPUs that each
//! have one operation under way are thus N customers of a closed queueing network:
//!
//! ```text
//!          +-------- own work: Z cycles, no queue -------+
//!          |                                             |
//!   N CPUs +--> line 1: v1 visits an operation, S1 each --+
//!          +--> line 2: v2 visits an operation, S2 each --+
//! ```
//!
//! **Formulae.** Per operation, Z = instructions * CPI + hits * `local_hit` + transfers of lines that nobody queues for,
//! at the mean price + IPIs sent and received, each at its price. A line's service time S is the mean price of a transfer
//! between two different ones of its sharers, who fill sockets one after the other:
//!
//! ```text
//!   P(same socket) = sum over sockets of m (m - 1) / (s (s - 1))     m sharers in the socket, s in all
//!   S              = P * same_socket + (1 - P) * cross_socket
//! ```
//!
//! Mean value analysis then gives the residence times R and the throughput X, by recursion on the number of customers
//! n = 1 ..= N, starting with empty queues Q = 0. It rests on the arrival theorem: who arrives at a queue finds it as
//! long as it is on average with one customer fewer.
//!
//! ```text
//!   R_k(n) = S_k (1 + m_k Q_k(n - 1))      C(n) = Z + sum of v_k R_k(n)
//!   X(n)   = n / C(n)                      Q_k(n) = X(n) v_k R_k(n)
//! ```
//!
//! m_k is 1 for a line that all CPUs share, and then this is the exact recursion. A line of which s of N CPUs share a
//! copy each (the counters of pairs of neighbours, s = 2) stands for N / s equal queues; Q_k is their sum, and of the
//! other customers' share of it a CPU meets the part m_k = (s - 1) / (N - 1) that is in its own queue. That is exact for
//! s = N and for s = 1; in between it is slower than the groups' networks solved one by one, by less than 7 % (a test).
//!
//! Two bounds hold for every network and are tested: X(N) <= N / (Z + sum of v_k S_k), reached where nobody waits, and
//! X(N) <= 1 / max of v_k S_k for a line shared by all: the flat part of the curve.
//!
//! **Sources.** Mean value analysis: Reiser and Lavenberg, "Mean-value analysis of closed multichain queuing networks",
//! Journal of the ACM 27(2), 1980; the bounds: Denning and Buzen, "The operational analysis of queueing network models",
//! ACM Computing Surveys 10(3), 1978. Serving a contended line one transfer at a time, and its collapse: Boyd-Wickizer,
//! Kaashoek, Morris and Zeldovich, "Non-scalable locks are dangerous", Linux Symposium 2012. The prices are at
//! [`Costs`].
//!
//! **Limits.** This is a model, and its results are to be labelled so.
//! * A mean says nothing of the CPUs' differences: all CPUs are taken to be alike. Where roles differ (one maps, another
//!   frees), give it the counts of the role that has more to do.
//! * Service times are taken to be exponential, as the arrival theorem needs. Transfers are more regular than that, so
//!   waiting just below saturation is overestimated (in an open queue by a factor of two). The ends of the curve, nobody
//!   waits and everybody waits for one line, don't depend on it.
//! * A line is occupied for its whole journey. That is so where a line is written by each in turn; homes overlap part of
//!   the journeys of lines that are read, so for these the model is pessimistic.
//! * It knows lines, not critical sections: a lock held for long makes others wait longer than its line's transfers.
//!   What they do meanwhile (instructions, transfers) is in the counts, if the counts were taken with as many CPUs.
//! * Neither memory bandwidth, nor misses for want of room, nor what a full TLB costs.
//! * Counts depend on the machine that counts: how finely it interleaves CPUs is a parameter of the counts, not of this.
//!
//! ```
//! use cost::{Costs, Counts, Line, model};
//!
//! // 5,000 instructions an operation, and one counter that all CPUs write.
//! let counter = Line { transfers: 1.0, sharers: u32::MAX };
//! let counts = Counts { instructions: 5000.0, lines: vec![counter], ..Counts::default() };
//! let [few, many] = [10, 80].map(|cpus| model(&Costs::default(), cpus, &counts));
//!
//! // On one socket nobody notices; on eight the counter is all that counts.
//! assert!(few.waiting_cycles < 0.01 * few.cycles);
//! assert!(many.waiting_cycles > 0.7 * many.cycles && many.busiest == Some(0));
//! assert!(many.loads[0].utilisation > 0.99);
//! ```

/// Prices, in cycles, and the machine that they are for. [`Costs::default`] is a machine of eight sockets with ten
/// cores each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// Cycles an instruction, all misses apart. 1 if not measured: kernel code has little parallelism between
    /// instructions, and its own misses.
    pub cycles_per_instruction: f64,
    /// Cycles of an access that finds its line in the CPU's own cache, where such accesses are counted apart: the
    /// latency of a first-level cache, 4 (3 to 5 in David and others, below).
    pub local_hit: f64,
    /// Cycles to bring a line from another core of the socket. David, Guerraoui and Trigonakis, "Everything you always
    /// wanted to know about synchronization but were afraid to ask", SOSP 2013: about 80 on a socket of Opterons, 110 to
    /// 120 on one of Xeons.
    pub same_socket: f64,
    /// Cycles to bring a line from another socket. The same: between 160 and 270 on Opterons, about 300 one hop away and
    /// 400 two hops away on an eight-socket Xeon.
    pub cross_socket: f64,
    /// Cycles an IPI takes of its sender: writing the interrupt command, and its share of waiting for the answers. An
    /// assumption on the low side, in favour of whoever sends many: a whole shootdown of one other CPU was measured to
    /// take 7,000 cycles on 10 cores and 37,000 on 80 (Clements, "The scalable commutativity rule", MIT thesis 2014).
    pub ipi_sent: f64,
    /// Cycles an IPI takes of its receiver: the entry, the handler's instructions apart, and the return.
    pub ipi_received: f64,
    /// CPUs in a socket. They are filled one after the other.
    pub cpus_per_socket: u32,
    /// Cycles a second, by which cycles become operations a second.
    pub hertz: f64,
}

impl Default for Costs {
    fn default() -> Self {
        Self {
            cycles_per_instruction: 1.0,
            local_hit: 4.0,
            same_socket: 100.0,
            cross_socket: 300.0,
            ipi_sent: 2000.0,
            ipi_received: 1000.0,
            cpus_per_socket: 10,
            hertz: 2.4e9,
        }
    }
}

impl Costs {
    /// Mean cycles of a transfer between two different ones of `sharers` CPUs.
    pub fn transfer(&self, sharers: u32) -> f64 {
        if sharers < 2 {
            return self.same_socket;
        }
        let per_socket = self.cpus_per_socket.max(1);
        let pairs = |cpus: u32| f64::from(cpus) * (f64::from(cpus) - 1.0);
        let (full, rest) = (sharers / per_socket, sharers % per_socket);
        let same = (f64::from(full) * pairs(per_socket) + pairs(rest)) / pairs(sharers);
        same * self.same_socket + (1.0 - same) * self.cross_socket
    }
}

/// What one operation costs a CPU on average, counted with as many CPUs as the model is asked for. No number is
/// negative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Instructions executed.
    pub instructions: f64,
    /// Accesses that found their line in the CPU's own cache; 0 if `instructions` pays for them.
    pub hits: f64,
    /// The lines that move most.
    pub lines: Vec<Line>,
    /// Transfers of all other lines, for which nobody queues.
    pub other_transfers: f64,
    /// IPIs sent, each target counted.
    pub ipis_sent: f64,
    /// IPIs received.
    pub ipis_received: f64,
}

/// A line, or a set of lines that different groups of CPUs use in the same way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Transfers to this CPU an operation.
    pub transfers: f64,
    /// CPUs that share one such line; more than there are count as all.
    pub sharers: u32,
}

/// What the model says. To be labelled "modelled".
#[derive(Clone, Debug, PartialEq)]
pub struct Modelled {
    /// Cycles from one operation's begin to the next one's.
    pub cycles: f64,
    /// Of these: work of the CPU's own, other transfers and IPIs included.
    pub own_cycles: f64,
    /// Of these: waiting for lines while they move between others.
    pub waiting_cycles: f64,
    /// Operations a second, on each CPU.
    pub throughput_per_cpu: f64,
    /// By line, in the order of [`Counts::lines`].
    pub loads: Vec<Load>,
    /// The line that is busiest, if one is in use: what bends the curve.
    pub busiest: Option<usize>,
}

/// What a line has to do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Cycles of one transfer.
    pub service: f64,
    /// Cycles of one transfer with the wait for it.
    pub residence: f64,
    /// The share of time in which the line moves; 1 is saturation.
    pub utilisation: f64,
}

/// A queue of the network.
struct Station {
    visits: f64,
    service: f64,
    sharers: f64,
    /// The part of the other customers' queue that is in this customer's own copy.
    met: f64,
    residence: f64,
    queue: f64,
}

/// Throughput with `cpus` CPUs that all do operations with these counts; with 0 CPUs, as with 1.
pub fn model(costs: &Costs, cpus: u32, counts: &Counts) -> Modelled {
    let cpus = cpus.max(1);
    let own = counts.instructions * costs.cycles_per_instruction
        + counts.hits * costs.local_hit
        + counts.other_transfers * costs.transfer(cpus)
        + counts.ipis_sent * costs.ipi_sent
        + counts.ipis_received * costs.ipi_received;
    let mut stations: Vec<_> = counts.lines.iter().map(|line| Station::new(costs, cpus, line)).collect();
    let cycles = solve(own, &mut stations, cpus);
    let load = |s: &Station| Load {
        service: s.service,
        residence: s.residence,
        utilisation: if cycles > 0.0 { s.sharers * s.visits * s.service / cycles } else { 0.0 },
    };
    let loads: Vec<_> = stations.iter().map(load).collect();
    let waiting = stations.iter().map(|s| s.visits * (s.residence - s.service)).sum();
    let used = (0..loads.len()).filter(|at| loads[*at].utilisation > 0.0);
    Modelled {
        cycles,
        own_cycles: own,
        waiting_cycles: waiting,
        throughput_per_cpu: if cycles > 0.0 { costs.hertz / cycles } else { 0.0 },
        busiest: used.max_by(|a, b| loads[*a].utilisation.total_cmp(&loads[*b].utilisation)),
        loads,
    }
}

impl Station {
    fn new(costs: &Costs, cpus: u32, line: &Line) -> Self {
        let sharers = line.sharers.clamp(1, cpus);
        let service = costs.transfer(sharers);
        let others = f64::from(cpus - 1).max(1.0);
        Self {
            visits: line.transfers,
            service,
            sharers: sharers.into(),
            met: f64::from(sharers - 1) / others,
            residence: service,
            queue: 0.0,
        }
    }
}

/// The recursion of mean value analysis; cycles an operation with `cpus` customers. Leaves residence times and queue
/// lengths in the stations.
fn solve(own: f64, stations: &mut [Station], cpus: u32) -> f64 {
    let mut cycles = own;
    for customers in 1..=cpus {
        for station in stations.iter_mut() {
            station.residence = station.service * (1.0 + station.met * station.queue);
        }
        cycles = own + stations.iter().map(|s| s.visits * s.residence).sum::<f64>();
        if cycles <= 0.0 {
            return 0.0;
        }
        for station in stations.iter_mut() {
            station.queue = f64::from(customers) / cycles * station.visits * station.residence;
        }
    }
    cycles
}

//! Which frames and CPUs are near each other: nodes of memory, and how far one is from another.
//!
//! The firmware says so in two tables (ACPI 6.5). The System Resource Affinity Table (SRAT, section 5.2.16) puts ranges
//! of physical memory and CPUs into *proximity domains*, which are 32-bit numbers in no particular order. The System
//! Locality Information Table (SLIT, section 5.2.17) has a matrix of relative distances between domains: 10 from a
//! domain to itself, 20 where an access takes twice as long, 255 where there is no way. A [`Builder`] takes what the
//! tables say, record by record, and makes a [`Topology`] of it: a plain value, which answers without locks or heap and
//! never changes afterwards.
//!
//! Firmware is careless, so whatever it leaves out has an answer:
//!
//! * Records that are not enabled, or hold nothing, are skipped. A domain that only such records name is no node.
//! * Domains become nodes 0, 1, 2, … in ascending order of their numbers.
//! * Where ranges overlap, the record that came first wins; so of two records for one CPU.
//! * Frames and CPUs that no record names belong to node 0. Without any record node 0 is the only one.
//! * Without a matrix, or with one that can't be right, other nodes are at distance [`REMOTE`].
//!
//! A node may have memory and no CPUs, or CPUs and no memory. SRAT also lists ranges into which memory could be plugged
//! later; which frames exist is known to the caller, who leaves out records without any.
//!
//! ```
//! use addr::Frame;
//! use frames::{
//!     FrameRange, Node,
//!     topology::{Builder, CpuAffinity, MemoryAffinity, TopologyError},
//! };
//! use percpu::CpuId;
//!
//! let mut builder = Builder::new(2);
//! let (mib, enabled) = (1 << 20, true);
//! builder.memory(MemoryAffinity { base: 0, length: 64 * mib, domain: 7, enabled })?;
//! builder.memory(MemoryAffinity { base: 64 * mib, length: 64 * mib, domain: 900, enabled })?;
//! builder.cpu(CpuAffinity { cpu: CpuId::new(1).unwrap(), domain: 900, enabled });
//! let topology = builder.build()?;
//!
//! let [a, b] = [0, 1].map(|n| Node::new(n).unwrap());
//! let frame = |mib: u64| Frame::new(mib << 8).unwrap();
//! assert_eq!((topology.node_of(frame(63)), topology.node_of(frame(64))), (a, b));
//! let all = FrameRange { start: frame(1), end: frame(100) };
//! let parts: Vec<_> = topology.cut(all).map(|(node, part)| (node, part.end)).collect();
//! assert_eq!(parts, [(a, frame(64)), (b, frame(100))]);
//! assert_eq!(topology.node_of_cpu(CpuId::new(1).unwrap()), b);
//! assert_eq!((topology.distance(a, a), topology.distance(a, b)), (10, 20));
//! # Ok::<(), TopologyError>(())
//! ```

use core::fmt;

use addr::{Frame, PAGE_SIZE};
use percpu::{CpuId, CpuSet, MAX_CPUS};

use crate::FrameRange;

/// The most nodes that a machine may have: a [`NodeSet`] is one word.
pub const MAX_NODES: usize = 64;
/// The most ranges of memory that a [`Builder`] takes.
pub const MAX_RANGES: usize = 128;
/// The distance of a node from itself (ACPI 6.5, section 5.2.17).
pub const LOCAL: u8 = 10;
/// The distance between two nodes of which nobody says how far they are: twice as long as [`LOCAL`].
pub const REMOTE: u8 = 20;
/// The distance between two nodes that can't reach each other's memory.
pub const UNREACHABLE: u8 = 255;

/// A node: CPUs and memory that are near each other. Dense: 0..[`Topology::nodes`], below [`MAX_NODES`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Node(u8);

impl Node {
    /// Node 0, which every machine has.
    pub const FIRST: Node = Node(0);
    /// Node number `n`, or `None` from [`MAX_NODES`] on.
    pub const fn new(n: usize) -> Option<Self> {
        if n < MAX_NODES { Some(Self(n as u8)) } else { None }
    }
    /// The number, as an index: below [`MAX_NODES`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A set of nodes, by value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NodeSet(u64);

impl NodeSet {
    /// No node.
    pub const EMPTY: NodeSet = NodeSet(0);

    /// The set whose bit `n` stands for node `n`.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    /// Bit `n` stands for node `n`.
    pub const fn bits(self) -> u64 {
        self.0
    }
    /// `node` alone.
    pub const fn only(node: Node) -> Self {
        Self(1 << node.0)
    }
    /// The nodes 0..`n`; all of them from [`MAX_NODES`] on.
    pub const fn first(n: usize) -> Self {
        if n < MAX_NODES { Self((1 << n) - 1) } else { Self(u64::MAX) }
    }
    /// Add `node`.
    pub fn insert(&mut self, node: Node) {
        self.0 |= 1 << node.0;
    }
    /// Take `node` out.
    pub fn remove(&mut self, node: Node) {
        self.0 &= !(1 << node.0);
    }
    /// Whether `node` is in the set.
    pub const fn contains(self, node: Node) -> bool {
        self.0 & 1 << node.0 != 0
    }
    /// Whether no node is in the set.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
    /// How many nodes are in the set.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }
    /// The nodes that are in both sets.
    pub const fn intersection(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 & other.0)
    }
    /// The nodes that are in either set.
    pub const fn union(self, other: NodeSet) -> NodeSet {
        NodeSet(self.0 | other.0)
    }
    /// The node with the lowest number.
    pub const fn lowest(self) -> Option<Node> {
        Node::new(self.0.trailing_zeros() as usize)
    }
    /// The nodes in ascending order.
    pub fn iter(self) -> NodeSetIter {
        NodeSetIter(self.0)
    }
}

impl fmt::Debug for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(Node::index)).finish()
    }
}

impl FromIterator<Node> for NodeSet {
    fn from_iter<I: IntoIterator<Item = Node>>(iter: I) -> Self {
        let mut set = Self::EMPTY;
        iter.into_iter().for_each(|node| set.insert(node));
        set
    }
}

impl IntoIterator for NodeSet {
    type Item = Node;
    type IntoIter = NodeSetIter;
    fn into_iter(self) -> NodeSetIter {
        self.iter()
    }
}

/// Iterator over the nodes of a set.
#[derive(Clone, Debug)]
pub struct NodeSetIter(u64);

impl Iterator for NodeSetIter {
    type Item = Node;
    fn next(&mut self) -> Option<Node> {
        let node = NodeSet(self.0).lowest()?;
        self.0 &= self.0 - 1;
        Some(node)
    }
}

/// What SRAT says of a range of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryAffinity {
    /// Physical address of the first byte.
    pub base: u64,
    /// Bytes.
    pub length: u64,
    /// The proximity domain.
    pub domain: u32,
    /// Whether the record counts.
    pub enabled: bool,
}

/// What SRAT says of a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CpuAffinity {
    /// The CPU.
    pub cpu: CpuId,
    /// The proximity domain.
    pub domain: u32,
    /// Whether the record counts.
    pub enabled: bool,
}

/// Why a topology can't be made, or a matrix of distances can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum TopologyError {
    /// More than [`MAX_RANGES`] ranges of memory.
    TooManyRanges,
    /// More than [`MAX_NODES`] domains.
    TooManyDomains,
    /// A node that is not at distance [`LOCAL`] from itself, or another one that is not farther.
    BadDistance,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyRanges => "too many ranges of memory",
            Self::TooManyDomains => "too many proximity domains",
            Self::BadDistance => "distances that can't be",
        })
    }
}

impl core::error::Error for TopologyError {}

/// Collects what SRAT says.
#[derive(Clone, Debug)]
pub struct Builder {
    /// In the order in which they came: first frame, first frame after, domain.
    ranges: [(u64, u64, u32); MAX_RANGES],
    used: usize,
    cpus: usize,
    /// The domain of each CPU that a record names.
    domains: [Option<u32>; MAX_CPUS],
}

impl Builder {
    /// Nothing is said yet of a machine with `cpus` CPUs, the first of all [`CpuId`]s.
    pub const fn new(cpus: usize) -> Self {
        Self { ranges: [(0, 0, 0); MAX_RANGES], used: 0, cpus, domains: [None; MAX_CPUS] }
    }

    /// As [`Self::new`], in place: it is large for a small stack.
    pub fn reset(&mut self, cpus: usize) {
        (self.used, self.cpus) = (0, cpus);
        self.domains.fill(None);
    }

    /// Take note of a range of memory. Frames belong to the range that has their first byte. Errors: `TooManyRanges`.
    pub fn memory(&mut self, record: MemoryAffinity) -> Result<(), TopologyError> {
        let MemoryAffinity { base, length, domain, enabled } = record;
        let [start, end] = [base, base.saturating_add(length)].map(|at| at.div_ceil(PAGE_SIZE));
        if !enabled || start >= end {
            return Ok(());
        }
        let slot = self.ranges.get_mut(self.used).ok_or(TopologyError::TooManyRanges)?;
        *slot = (start, end, domain);
        self.used += 1;
        Ok(())
    }

    /// Take note of where a CPU is.
    pub fn cpu(&mut self, record: CpuAffinity) {
        let slot = &mut self.domains[record.cpu.index()];
        if record.enabled && record.cpu.index() < self.cpus && slot.is_none() {
            *slot = Some(record.domain);
        }
    }

    /// The topology, with distances as if there were no matrix. Errors: `TooManyDomains`.
    pub fn build(&self) -> Result<Topology, TopologyError> {
        let mut topology = Topology::one_node(self.cpus);
        self.build_in(&mut topology).map(|()| topology)
    }

    /// As [`Self::build`], in place: a topology is large for a small stack. After an error it has one node.
    pub fn build_in(&self, topology: &mut Topology) -> Result<(), TopologyError> {
        topology.reset(self.cpus);
        topology.number(self.named())?;
        for (node, domain) in topology.node_of_cpu.iter_mut().zip(self.domains) {
            *node = domain.and_then(|d| topology.domains.node(d)).unwrap_or_default();
        }
        // Between two neighbouring borders all frames have the same first record.
        let ranges = &self.ranges[..self.used];
        let mut at = Some(0);
        while let Some(start) = at {
            let first = ranges.iter().find(|(a, b, _)| (*a..*b).contains(&start));
            topology.begin(start, first.and_then(|r| topology.domains.node(r.2)).unwrap_or_default());
            let borders = ranges.iter().flat_map(|(a, b, _)| [*a, *b]);
            at = borders.filter(|&border| border > start).min();
        }
        Ok(())
    }

    /// The domains that records name, in no order, repeatedly.
    fn named(&self) -> impl Iterator<Item = u32> + Clone {
        let memory = self.ranges[..self.used].iter().map(|(.., domain)| *domain);
        memory.chain(self.domains.iter().flatten().copied())
    }
}

/// Which proximity domain each node stands for; ascending.
#[derive(Clone, Copy, Debug)]
struct Domains {
    of: [u32; MAX_NODES],
    nodes: usize,
}

impl Domains {
    fn node(&self, domain: u32) -> Option<Node> {
        self.of[..self.nodes].binary_search(&domain).ok().and_then(Node::new)
    }
}

/// The most parts into which the borders of all ranges divide memory.
const MAX_PARTS: usize = 2 * MAX_RANGES + 1;

/// The nodes of a machine: what belongs to them, and how far they are apart. Some 7 KiB: meant for a static.
#[derive(Clone, Debug)]
pub struct Topology {
    /// What [`Self::set_distances`] is told of.
    domains: Domains,
    cpus: usize,
    node_of_cpu: [Node; MAX_CPUS],
    /// Parts of memory, each up to the next: the number of its first frame, ascending from 0; and its node, which is not
    /// the one before it again.
    starts: [u64; MAX_PARTS],
    owners: [Node; MAX_PARTS],
    parts: usize,
    distances: [[u8; MAX_NODES]; MAX_NODES],
}

impl Topology {
    /// As [`Self::one_node`], in place: it is large for a small stack.
    pub fn reset(&mut self, cpus: usize) {
        self.domains = Domains { of: [0; MAX_NODES], nodes: 1 };
        (self.cpus, self.parts) = (cpus, 1);
        self.node_of_cpu.fill(Node(0));
        self.starts.fill(0);
        self.owners.fill(Node(0));
        for (n, row) in self.distances.iter_mut().enumerate() {
            row.fill(REMOTE);
            row[n] = LOCAL;
        }
    }

    /// A machine with `cpus` CPUs of which nothing is said: one node has them and all memory.
    pub const fn one_node(cpus: usize) -> Self {
        let mut distances = [[REMOTE; MAX_NODES]; MAX_NODES];
        let mut n = 0;
        while n < MAX_NODES {
            distances[n][n] = LOCAL;
            n += 1;
        }
        Self {
            domains: Domains { of: [0; MAX_NODES], nodes: 1 },
            cpus,
            node_of_cpu: [Node(0); MAX_CPUS],
            starts: [0; MAX_PARTS],
            owners: [Node(0); MAX_PARTS],
            parts: 1,
            distances,
        }
    }

    /// How many nodes there are: 1..=[`MAX_NODES`].
    pub fn nodes(&self) -> usize {
        self.domains.nodes
    }
    /// All nodes.
    pub fn all(&self) -> NodeSet {
        NodeSet::first(self.nodes())
    }
    /// How many CPUs there are.
    pub fn cpus(&self) -> usize {
        self.cpus
    }
    /// The proximity domain that `node` stands for; 0 if there is no such node.
    pub fn domain(&self, node: Node) -> u32 {
        self.domains.of[node.index()]
    }
    /// The node of `frame`, whether or not there is such a frame. Takes the logarithm of the number of ranges.
    pub fn node_of(&self, frame: Frame) -> Node {
        self.owners[self.part_of(frame)]
    }
    /// The node of `cpu`.
    pub fn node_of_cpu(&self, cpu: CpuId) -> Node {
        self.node_of_cpu[cpu.index()]
    }
    /// The CPUs of `node`.
    pub fn cpus_of(&self, node: Node) -> CpuSet {
        (0..self.cpus).filter_map(CpuId::new).filter(|&cpu| self.node_of_cpu(cpu) == node).collect()
    }
    /// How far the memory of `to` is from the CPUs of `from`: [`LOCAL`] to [`UNREACHABLE`].
    pub fn distance(&self, from: Node, to: Node) -> u8 {
        self.distances[from.index()][to.index()]
    }
    /// All nodes that `from` reaches, nearest first, of equally near ones in order of their numbers: so `from` itself is
    /// the first.
    pub fn by_distance(&self, from: Node) -> impl Iterator<Item = Node> + '_ {
        let ranked = move |node: Node| (self.distance(from, node), node);
        let after = move |last: (u8, Node)| {
            self.all().iter().map(ranked).filter(|&r| r > last && r.0 < UNREACHABLE).min()
        };
        core::iter::successors(after((0, Node(0))), move |&last| after(last)).map(|(_, node)| node)
    }
    /// The parts of `range`, ascending, each of one node.
    pub fn cut(&self, range: FrameRange) -> impl Iterator<Item = (Node, FrameRange)> + '_ {
        let parts = self.part_of(range.start)..self.parts;
        parts
            .map(move |i| {
                let next = (i + 1 < self.parts).then(|| self.starts[i + 1]).and_then(Frame::new);
                let start = Frame::new(self.starts[i]).unwrap_or(range.end).max(range.start);
                (
                    self.owners[i],
                    FrameRange { start, end: next.map_or(range.end, |next| next.min(range.end)) },
                )
            })
            .take_while(|(_, part)| part.start < part.end)
    }

    /// Take the distances of a matrix over the domains 0..`localities`, whose entry (from, to) is `entry(from, to)`:
    /// those between nodes; of domains beyond the matrix they stay as they are.
    ///
    /// Errors: `BadDistance`, with nothing changed.
    pub fn set_distances(
        &mut self,
        localities: u64,
        entry: impl Fn(u32, u32) -> u8,
    ) -> Result<(), TopologyError> {
        let Domains { of, nodes } = self.domains;
        let known = of[..nodes].iter().enumerate().filter(|(_, domain)| u64::from(**domain) < localities);
        let pairs = known.clone().flat_map(|from| known.clone().map(move |to| (from, to)));
        for ((_, from), (_, to)) in pairs.clone() {
            let distance = entry(*from, *to);
            if (from == to) != (distance == LOCAL) || distance < LOCAL {
                return Err(TopologyError::BadDistance);
            }
        }
        for ((i, from), (j, to)) in pairs {
            self.distances[i][j] = entry(*from, *to);
        }
        Ok(())
    }

    /// Make nodes of the domains that are named; without any, there is the one node that there always is.
    fn number(&mut self, named: impl Iterator<Item = u32> + Clone) -> Result<(), TopologyError> {
        let above = |last| named.clone().filter(|&domain| domain > last).min();
        let ascending = core::iter::successors(named.clone().min(), |&last| above(last));
        let nodes = ascending.clone().count();
        if nodes > MAX_NODES {
            return Err(TopologyError::TooManyDomains);
        }
        self.domains.of.iter_mut().zip(ascending).for_each(|(slot, domain)| *slot = domain);
        self.domains.nodes = nodes.max(1);
        Ok(())
    }
    /// From frame number `start` on, which is above all that came before, memory is `node`'s.
    fn begin(&mut self, start: u64, node: Node) {
        if start == 0 {
            self.owners[0] = node;
        } else if self.owners[self.parts - 1] != node {
            (self.starts[self.parts], self.owners[self.parts]) = (start, node);
            self.parts += 1;
        }
    }
    fn part_of(&self, frame: Frame) -> usize {
        // The first part begins at 0.
        self.starts[..self.parts].partition_point(|&start| start <= frame.number()).saturating_sub(1)
    }
}

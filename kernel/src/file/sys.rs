//! /sys: which CPUs and memory nodes there are, as far as C libraries and runtimes look.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};

use addr::PAGE_SIZE;
use frames::NodeSet;
use linux_raw_sys::general as c;
use percpu::{CpuId, CpuSet};

use super::{
    Result,
    entry::Entry,
    inode::{Inode, Kind, Link, Listing, Name, Node, Volume},
    proc::{Item, Table, number, text},
    proc_pid::ranges,
};
use crate::{
    hw::{cpu, numa},
    memory,
};

fn all_cpus() -> String {
    format!("{}\n", ranges(0..cpu::count()))
}

/// A mask as wide as there are CPUs, in words of 32 bits, the highest first.
fn mask(cpus: impl Iterator<Item = usize>) -> String {
    let count = cpu::count();
    let mut words = alloc::vec![0u32; count.div_ceil(32)];
    for n in cpus {
        if let Some(word) = words.get_mut(n / 32) {
            *word |= 1 << (n % 32);
        }
    }
    let digits = |i: usize| (count - 32 * i).min(32).div_ceil(4);
    let shown: Vec<String> =
        words.iter().enumerate().rev().map(|(i, w)| format!("{w:0width$x}", width = digits(i))).collect();
    shown.join(",") + "\n"
}

const CPU: &[(&str, Item)] = &[
    ("kernel_max", Item::Text(|| format!("{}\n", percpu::MAX_CPUS - 1))),
    ("offline", Item::Text(|| "\n".into())),
    ("online", Item::Text(all_cpus)),
    ("possible", Item::Text(all_cpus)),
    ("present", Item::Text(all_cpus)),
];

const NODE: &[(&str, Item)] = &[
    ("has_cpu", Item::Text(|| nodes(with_cpus()))),
    ("has_memory", Item::Text(|| nodes(numa::with_memory()))),
    ("has_normal_memory", Item::Text(|| nodes(numa::with_memory()))),
    ("online", Item::Text(|| nodes(numa::topology().all()))),
    ("possible", Item::Text(|| nodes(numa::topology().all()))),
];

fn nodes(set: NodeSet) -> String {
    format!("{}\n", ranges(set.iter().map(frames::Node::index)))
}

fn with_cpus() -> NodeSet {
    let topology = numa::topology();
    topology.all().iter().filter(|&node| !topology.cpus_of(node).is_empty()).collect()
}

/// A directory whose names are made up here: `lookup` and the names with their kinds.
struct Directory {
    lookup: fn(&[u8]) -> Option<Node>,
    names: fn() -> Vec<(String, u32)>,
}

impl Listing for Directory {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        (self.lookup)(name)
    }
    fn names(&self) -> Vec<Name> {
        let name = |(position, (n, kind)): (u64, (String, u32))| Name {
            position,
            name: n.into_bytes(),
            kind: kind as u8,
        };
        (2..).zip((self.names)()).map(name).collect()
    }
}

fn directory(listing: impl Listing + 'static) -> Node {
    Node { kind: Kind::Listing(Box::new(listing)), mode: 0o555 }
}

/// A chain of directories with one name each.
macro_rules! only {
    ($name:literal, $inside:expr) => {
        Directory {
            lookup: |name| (name == $name.as_bytes()).then(|| directory($inside)),
            names: || Vec::from([(String::from($name), c::DT_DIR)]),
        }
    };
}

/// /sys/devices/system.
const SYSTEM: Directory = Directory {
    lookup: |name| match name {
        b"cpu" => Some(directory(CPUS)),
        b"node" => Some(directory(NODES)),
        _ => None,
    },
    names: || Vec::from([("cpu".into(), c::DT_DIR), ("node".into(), c::DT_DIR)]),
};

/// /sys/devices/system/cpu.
const CPUS: Directory = Directory {
    lookup: |name| {
        Table(CPU).lookup(name).or_else(|| {
            let n = number(name.strip_prefix(b"cpu")?)? as usize;
            (n < cpu::count()).then(|| directory(OneCpu { n, inside: false }))
        })
    },
    names: || {
        let fixed = CPU.iter().map(|(n, _)| (String::from(*n), c::DT_REG));
        fixed.chain((0..cpu::count()).map(|n| (format!("cpu{n}"), c::DT_DIR))).collect()
    },
};

/// /sys/devices/system/node.
const NODES: Directory = Directory {
    lookup: |name| {
        Table(NODE).lookup(name).or_else(|| {
            let node = frames::Node::new(number(name.strip_prefix(b"node")?)? as usize)?;
            numa::topology().all().contains(node).then(|| directory(OneNode(node)))
        })
    },
    names: || {
        let fixed = NODE.iter().map(|(n, _)| (String::from(*n), c::DT_REG));
        let numbered = numa::topology().all().iter().map(|node| (format!("node{}", node.index()), c::DT_DIR));
        fixed.chain(numbered).collect()
    },
};

/// /sys/devices/system/node/nodeN.
struct OneNode(frames::Node);

/// A file's name, and what it says of a node.
type NodeFile = (&'static str, fn(frames::Node) -> String);

const NODE_FILES: &[NodeFile] = &[
    ("cpulist", |node| format!("{}\n", ranges(cpus_of(node).iter().map(CpuId::index)))),
    ("cpumap", |node| mask(cpus_of(node).iter().map(CpuId::index))),
    ("distance", distances),
    ("meminfo", node_meminfo),
];

fn cpus_of(node: frames::Node) -> CpuSet {
    numa::topology().cpus_of(node)
}

fn distances(node: frames::Node) -> String {
    let topology = numa::topology();
    let all: Vec<_> = topology.all().iter().map(|to| format!("{}", topology.distance(node, to))).collect();
    all.join(" ") + "\n"
}

fn node_meminfo(node: frames::Node) -> String {
    let (total, free) = memory::frames().allocator().node_stats(node);
    let rows = [("MemTotal:", total), ("MemFree:", free), ("MemUsed:", total.saturating_sub(free))];
    rows.into_iter()
        .map(|(name, frames)| {
            format!("Node {} {name:<15}{:>8} kB\n", node.index(), frames * PAGE_SIZE / 1024)
        })
        .collect()
}

impl Listing for OneNode {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        let node = self.0;
        if let Some(&(_, make)) = NODE_FILES.iter().find(|(n, _)| n.as_bytes() == name) {
            return Some(text(move || Ok(make(node).into_bytes())));
        }
        let cpu = CpuId::new(number(name.strip_prefix(b"cpu")?)? as usize)?;
        cpus_of(node).contains(cpu).then(|| relative(format!("../../cpu/cpu{}", cpu.index())))
    }
    fn names(&self) -> Vec<Name> {
        let files = NODE_FILES.iter().map(|(n, _)| (String::from(*n), c::DT_REG));
        let cpus = cpus_of(self.0);
        let links = cpus.iter().map(|cpu| (format!("cpu{}", cpu.index()), c::DT_LNK));
        let name = |(position, (n, kind)): (u64, (String, u32))| Name {
            position,
            name: n.into_bytes(),
            kind: kind as u8,
        };
        (2..).zip(files.chain(links)).map(name).collect()
    }
}

/// A link that always says the same.
struct Fixed(String);

impl Link for Fixed {
    fn text(&self) -> Result<Vec<u8>> {
        Ok(self.0.clone().into_bytes())
    }
}

fn relative(to: String) -> Node {
    Node { kind: Kind::Link(Box::new(Fixed(to))), mode: 0o777 }
}

/// /sys/devices/system/cpu/cpuN, and its directory `topology`: every CPU is a core of one package.
struct OneCpu {
    n: usize,
    inside: bool,
}

/// A file's name, and what it says of CPU number so many.
type TopologyFile = (&'static str, fn(usize) -> String);

const TOPOLOGY: &[TopologyFile] = &[
    ("core_cpus", |n| mask(n..n + 1)),
    ("core_cpus_list", |n| format!("{n}\n")),
    ("core_id", |n| format!("{n}\n")),
    ("core_siblings", |_| mask(0..cpu::count())),
    ("core_siblings_list", |_| all_cpus()),
    ("package_cpus_list", |_| all_cpus()),
    ("physical_package_id", |_| "0\n".into()),
    ("thread_siblings", |n| mask(n..n + 1)),
    ("thread_siblings_list", |n| format!("{n}\n")),
];

/// The node of CPU number `n`.
fn node_of(n: usize) -> usize {
    CpuId::new(n).map_or(0, |cpu| numa::topology().node_of_cpu(cpu).index())
}

impl Listing for OneCpu {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        let n = self.n;
        match (self.inside, name) {
            (false, b"topology") => Some(directory(OneCpu { n, inside: true })),
            (false, b"online") => Some(text(|| Ok(b"1\n".to_vec()))),
            (false, _) => {
                let node = number(name.strip_prefix(b"node")?)? as usize;
                (node == node_of(n)).then(|| relative(format!("../../node/node{node}")))
            }
            (true, _) => {
                let (_, make) = *TOPOLOGY.iter().find(|(t, _)| t.as_bytes() == name)?;
                Some(text(move || Ok(make(n).into_bytes())))
            }
        }
    }
    fn names(&self) -> Vec<Name> {
        let names: Vec<(String, u32)> = if self.inside {
            TOPOLOGY.iter().map(|(n, _)| (String::from(*n), c::DT_REG)).collect()
        } else {
            let node = format!("node{}", node_of(self.n));
            Vec::from([(node, c::DT_LNK), ("online".into(), c::DT_REG), ("topology".into(), c::DT_DIR)])
        };
        let name = |(position, (n, kind)): (u64, (String, u32))| Name {
            position,
            name: n.into_bytes(),
            kind: kind as u8,
        };
        (2..).zip(names).map(name).collect()
    }
}

/// Put /sys under `root`.
pub fn mount(root: &Arc<Entry>) -> Result<()> {
    let listing = Kind::Listing(Box::new(only!("devices", only!("system", SYSTEM))));
    super::mount_at(root, b"sys", Inode::new(listing, 0o555, Volume::Sys)).map(drop)
}

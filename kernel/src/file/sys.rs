//! /sys: which CPUs and memory nodes there are, as far as C libraries and runtimes look.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec::Vec};

use linux_raw_sys::general as c;

use super::{
    Result,
    entry::Entry,
    inode::{Inode, Kind, Listing, Name, Node, Volume},
    proc::{Item, Table, number, text},
    proc_pid::ranges,
};
use crate::hw::cpu;

fn all_cpus() -> String {
    format!("{}\n", ranges(0..cpu::count()))
}

fn mask(cpus: impl Iterator<Item = usize>) -> String {
    let mut words = alloc::vec![0u32; cpu::count().div_ceil(32)];
    for n in cpus {
        if let Some(word) = words.get_mut(n / 32) {
            *word |= 1 << (n % 32);
        }
    }
    let shown: Vec<String> = words.iter().rev().map(|w| format!("{w:08x}")).collect();
    shown.join(",") + "\n"
}

const CPU: &[(&str, Item)] = &[
    ("kernel_max", Item::Text(|| format!("{}\n", percpu::MAX_CPUS - 1))),
    ("offline", Item::Text(|| "\n".into())),
    ("online", Item::Text(all_cpus)),
    ("possible", Item::Text(all_cpus)),
    ("present", Item::Text(all_cpus)),
];

/// One memory node: all of it.
const NODE: &[(&str, Item)] = &[
    ("has_cpu", Item::Text(|| "0\n".into())),
    ("has_memory", Item::Text(|| "0\n".into())),
    ("node0", Item::Directory(NODE0)),
    ("online", Item::Text(|| "0\n".into())),
    ("possible", Item::Text(|| "0\n".into())),
];

const NODE0: &[(&str, Item)] =
    &[("cpulist", Item::Text(all_cpus)), ("cpumap", Item::Text(|| mask(0..cpu::count())))];

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
        b"node" => Some(directory(Table(NODE))),
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

impl Listing for OneCpu {
    fn lookup(&self, name: &[u8]) -> Option<Node> {
        let n = self.n;
        match (self.inside, name) {
            (false, b"topology") => Some(directory(OneCpu { n, inside: true })),
            (false, b"online") => Some(text(|| Ok(b"1\n".to_vec()))),
            (true, _) => {
                let (_, make) = *TOPOLOGY.iter().find(|(t, _)| t.as_bytes() == name)?;
                Some(text(move || Ok(make(n).into_bytes())))
            }
            _ => None,
        }
    }
    fn names(&self) -> Vec<Name> {
        let names: Vec<(&str, u32)> = if self.inside {
            TOPOLOGY.iter().map(|(n, _)| (*n, c::DT_REG)).collect()
        } else {
            Vec::from([("online", c::DT_REG), ("topology", c::DT_DIR)])
        };
        let name =
            |(position, (n, kind)): (u64, (&str, u32))| Name { position, name: n.into(), kind: kind as u8 };
        (2..).zip(names).map(name).collect()
    }
}

/// Put /sys under `root`.
pub fn mount(root: &Arc<Entry>) -> Result<()> {
    let listing = Kind::Listing(Box::new(only!("devices", only!("system", SYSTEM))));
    super::mount_at(root, b"sys", Inode::new(listing, 0o555, Volume::Sys)).map(drop)
}

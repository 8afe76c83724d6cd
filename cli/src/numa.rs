//! The machine's NUMA nodes, as `--numa` describes them: `N`, then what is not as usual, each after a colon.
//!
//! ```text
//! 2                            two nodes with half of CPUs and memory each, 20 apart
//! 2:dist=10,31                 the same, 31 apart
//! 4:dist=10,16,24              in a row: neighbours 16 apart, all others 24
//! 3:cpus=2,2,0:mem=256M,0,1G   the third has memory only, the second CPUs only
//! ```

use std::str::FromStr;

use crate::{
    args,
    failure::{USAGE, failure},
};

/// As many as QEMU's distances can be written out for, and as the kernel has.
const MOST: u32 = 64;
/// A node's distance from itself (ACPI 6.5, section 5.2.17), and the most that QEMU and Linux take.
const LOCAL: u8 = 10;
const FARTHEST: u8 = 254;
/// Between two nodes, if nobody says otherwise: twice as far as a node is from itself.
const REMOTE: u8 = 20;

/// Nodes as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numa {
    nodes: u32,
    /// By how many steps two nodes are apart when all stand in a row; the last for all that are farther.
    distances: Vec<u8>,
    /// CPUs of each node, if not as equal as they can be.
    cpus: Option<Vec<u32>>,
    /// MiB of each node, likewise.
    mib: Option<Vec<u64>>,
}

impl Numa {
    /// `nodes` alike.
    pub fn even(nodes: u32) -> Self {
        Self { nodes, distances: vec![LOCAL, REMOTE], cpus: None, mib: None }
    }

    /// Bytes of memory of all nodes, if that was said.
    pub fn memory(&self) -> Option<u64> {
        self.mib.as_ref().map(|mib| mib.iter().sum::<u64>() << 20)
    }

    /// CPUs of all nodes, if that was said.
    pub fn cpus(&self) -> Option<u32> {
        self.cpus.as_ref().map(|cpus| cpus.iter().sum())
    }

    /// A mistake, if a machine with this many CPUs can't have these nodes. `mem` is what `--mem` says, if anything.
    pub fn check(&self, cpus: u32, mem: Option<u64>) -> anyhow::Result<()> {
        let line = match (self.cpus(), self.memory(), mem) {
            (None, ..) if self.nodes > cpus => {
                format!("{0} NUMA nodes need as many CPUs: say --cpus {0} or more", self.nodes)
            }
            (Some(all), ..) if all != cpus => {
                format!("--numa has nodes with {all} CPUs: say --cpus {all}, or nothing of CPUs")
            }
            (_, Some(all), Some(mem)) if all != mem => {
                let mib = all >> 20;
                format!("--numa has nodes with {mib}M: say --mem {mib}M, or nothing of memory")
            }
            _ => return Ok(()),
        };
        Err(failure(USAGE, line))
    }

    /// How far node `to` is from node `from`.
    fn distance(&self, from: u32, to: u32) -> u8 {
        let steps = from.abs_diff(to) as usize;
        self.distances.get(steps).or(self.distances.last()).copied().unwrap_or(REMOTE)
    }

    /// QEMU's options for a machine with so many CPUs and MiB. None for a single node: then there are no tables.
    pub fn arguments(&self, cpus: u32, mib: u64) -> Vec<(&'static str, String)> {
        let mut options = Vec::new();
        if self.nodes == 1 {
            return options;
        }
        let share = |total: u64, nodes: u32| total * u64::from(nodes) / u64::from(self.nodes);
        let mut next_cpu = 0;
        for node in 0..self.nodes {
            let of = node as usize;
            let even = |total| share(total, node + 1) - share(total, node);
            let size = self.mib.as_ref().map_or(even(mib), |mib| mib[of]);
            let count = self.cpus.as_ref().map_or(even(cpus.into()) as u32, |cpus| cpus[of]);
            let mut words = format!("node,nodeid={node}");
            if count > 0 {
                words += &format!(",cpus={next_cpu}-{}", next_cpu + count - 1);
            }
            next_cpu += count;
            if size > 0 {
                options.push(("-object", format!("memory-backend-ram,id=m{node},size={size}M")));
                words += &format!(",memdev=m{node}");
            }
            options.push(("-numa", words));
        }
        for from in 0..self.nodes {
            for to in (0..self.nodes).filter(|to| *to != from) {
                let val = self.distance(from, to);
                options.push(("-numa", format!("dist,src={from},dst={to},val={val}")));
            }
        }
        options
    }
}

/// `text` as a list with a value for each of `nodes`, of which not all are zero.
fn each<T: Default + PartialEq>(
    nodes: u32,
    text: &str,
    what: &str,
    value: impl Fn(&str) -> Option<T>,
) -> Result<Vec<T>, String> {
    let values: Option<Vec<T>> = text.split(',').map(value).collect();
    match values {
        Some(values) if values.len() == nodes as usize && values.iter().any(|v| *v != T::default()) => {
            Ok(values)
        }
        _ => Err(format!("say {what} for each of {nodes} nodes, not all of them 0")),
    }
}

impl FromStr for Numa {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(':');
        let nodes = match parts.next().unwrap_or_default().parse() {
            Ok(n) if (1..=MOST).contains(&n) => n,
            _ => return Err(format!("say a number of NUMA nodes from 1 to {MOST}")),
        };
        let mut numa = Self::even(nodes);
        for part in parts {
            match part.split_once('=') {
                Some(("dist", list)) => {
                    let distances: Result<Vec<u8>, _> = list.split(',').map(str::parse).collect();
                    let fits = |d: &Vec<u8>| {
                        d.len() > 1
                            && d[0] == LOCAL
                            && d[1..].iter().all(|far| (LOCAL + 1..=FARTHEST).contains(far))
                    };
                    numa.distances = distances.ok().filter(fits).ok_or(format!(
                        "say dist={LOCAL},N,… with N from {} to {FARTHEST}, for one step, two steps, …",
                        LOCAL + 1
                    ))?;
                }
                Some(("cpus", list)) => {
                    let count = |word: &str| word.parse().ok().filter(|n| *n <= 255);
                    numa.cpus = Some(each(nodes, list, "cpus=N,…", count)?);
                }
                Some(("mem", list)) => {
                    let size = |word: &str| match word {
                        "0" => Some(0),
                        word => args::bytes(word).filter(|b| b % (1 << 20) == 0).map(|b| b >> 20),
                    };
                    numa.mib = Some(each(nodes, list, "mem=SIZE,… in whole MiB", size)?);
                }
                _ => return Err("say N, then :dist=…, :cpus=… or :mem=…, as in 2:dist=10,31".to_owned()),
            }
        }
        Ok(numa)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numa(text: &str) -> Numa {
        text.parse().unwrap()
    }
    /// The words of all options of this kind that begin so.
    fn of(options: &[(&str, String)], kind: &str, start: &str) -> Vec<String> {
        options.iter().filter(|o| o.0 == kind && o.1.starts_with(start)).map(|o| o.1.clone()).collect()
    }

    #[test]
    fn nodes_share_everything() {
        let options = numa("3").arguments(8, 1000);
        assert_eq!(
            of(&options, "-object", ""),
            [
                "memory-backend-ram,id=m0,size=333M",
                "memory-backend-ram,id=m1,size=333M",
                "memory-backend-ram,id=m2,size=334M"
            ]
        );
        assert_eq!(
            of(&options, "-numa", "node"),
            [
                "node,nodeid=0,cpus=0-1,memdev=m0",
                "node,nodeid=1,cpus=2-4,memdev=m1",
                "node,nodeid=2,cpus=5-7,memdev=m2",
            ]
        );
        assert!(of(&options, "-numa", "dist").iter().all(|words| words.ends_with(",val=20")));
        assert_eq!(of(&options, "-numa", "dist").len(), 6);
        assert!(numa("1:dist=10,31").arguments(8, 1000).is_empty());
    }

    #[test]
    fn distances_are_by_steps() {
        let options = numa("4:dist=10,16,24").arguments(4, 400);
        let far = |from, to| {
            let words = of(&options, "-numa", &format!("dist,src={from},dst={to},"));
            words.concat().rsplit('=').next().unwrap().to_owned()
        };
        assert_eq!([far(0, 1), far(0, 2), far(3, 0), far(2, 1)], ["16", "24", "24", "16"]);
    }

    #[test]
    fn nodes_may_lack_cpus_or_memory() {
        let numa = numa("3:cpus=2,2,0:mem=256M,0,1G");
        let options = numa.arguments(4, 1280);
        assert_eq!(
            of(&options, "-numa", "node"),
            ["node,nodeid=0,cpus=0-1,memdev=m0", "node,nodeid=1,cpus=2-3", "node,nodeid=2,memdev=m2"]
        );
        assert_eq!(of(&options, "-object", "").len(), 2);
        assert_eq!((numa.memory(), numa.cpus()), (Some(1280 << 20), Some(4)));
    }

    #[test]
    fn what_does_not_fit_the_machine_is_said() {
        let mistake = |text, cpus, mem| numa(text).check(cpus, mem).unwrap_err().to_string();
        assert!(mistake("4", 2, None).ends_with("say --cpus 4 or more"));
        assert!(mistake("2:cpus=3,1", 2, None).ends_with("say --cpus 4, or nothing of CPUs"));
        assert!(mistake("2:mem=64M,64M", 2, Some(1 << 30)).ends_with("say --mem 128M, or nothing of memory"));
        assert!(numa("2:mem=64M,64M:cpus=0,3").check(3, Some(128 << 20)).is_ok());
        assert!(numa("2").check(2, Some(1 << 30)).is_ok());
    }

    #[test]
    fn mistakes_say_what_to_say() {
        let mistake = |text: &str| text.parse::<Numa>().unwrap_err();
        for bad in ["", "0", "65", "-1", "x", "2,dist=10"] {
            assert!(mistake(bad).ends_with("from 1 to 64"), "{bad}");
        }
        for bad in ["10", "11,20", "10,10", "10,255", "10,x", ""] {
            assert!(mistake(&format!("2:dist={bad}")).starts_with("say dist=10,N,… with N from 11 to 254"));
        }
        for bad in ["2", "0,0", "1,2,3", "1,256", "1,x"] {
            assert_eq!(
                mistake(&format!("2:cpus={bad}")),
                "say cpus=N,… for each of 2 nodes, not all of them 0"
            );
        }
        for bad in ["64M", "0,0", "1,2", "64K,64M", "64M,-1M"] {
            assert!(mistake(&format!("2:mem={bad}")).starts_with("say mem=SIZE,… in whole MiB"), "{bad}");
        }
        for bad in ["2:", "2:frob=1", "2:dist"] {
            assert!(mistake(bad).ends_with("as in 2:dist=10,31"), "{bad}");
        }
    }
}

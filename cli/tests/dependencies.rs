//! Dependencies go one way: down.
//!
//! ```text
//! addr, percpu  <-  sync  <-  frames  <-  owned  <-  tlb  <-  pagetable  <-  aspace  <-  kernel
//! percpu  <-  sync  <-  heap, rcu  <-  kernel
//! percpu  <-  sync  <-  refcache, rcu  <-  radix, idle
//! percpu  <-  sync  <-  rcu  <-  bonsai
//! percpu  <-  sync  <-  vmprim
//! ```
//! The driver, the tracer and the guest programs use none of these; the driver may use the cost model, which uses nothing.
//! The programs for the host use them as the kernel does.
//! `cargo metadata` says what the manifests really state.

use std::{collections::BTreeMap, process::Command};

use serde_json::Value;

/// What each crate of the workspace may use. A crate that is not here fails the test: give it its place.
const MAY_USE: &[(&str, &[&str])] = &[
    ("quire-addr", &[]),
    ("quire-percpu", &[]),
    ("quire-sync", &["quire-addr", "quire-percpu"]),
    ("quire-heap", &["quire-percpu", "quire-sync"]),
    ("quire-refcache", &["quire-percpu", "quire-sync"]),
    ("quire-rcu", &["quire-percpu", "quire-sync"]),
    ("quire-bonsai", &["quire-percpu", "quire-sync", "quire-rcu"]),
    ("quire-radix", &["quire-percpu", "quire-sync", "quire-refcache", "quire-rcu"]),
    ("quire-idle", &["quire-percpu", "quire-sync", "quire-refcache", "quire-rcu"]),
    ("quire-frames", &["quire-addr", "quire-percpu", "quire-sync"]),
    ("quire-owned", &["quire-addr", "quire-percpu", "quire-sync", "quire-frames"]),
    ("quire-tlb", &["quire-addr", "quire-percpu", "quire-sync", "quire-owned"]),
    // Within their level: a page table hands what it unmaps to a gather.
    ("quire-pagetable", &["quire-addr", "quire-percpu", "quire-sync", "quire-owned", "quire-tlb"]),
    (
        "quire-aspace",
        &[
            "quire-addr",
            "quire-percpu",
            "quire-sync",
            "quire-refcache",
            "quire-rcu",
            "quire-idle",
            "quire-bonsai",
            "quire-radix",
            "quire-frames",
            "quire-owned",
            "quire-pagetable",
            "quire-tlb",
        ],
    ),
    (
        "quire-kernel",
        &[
            "quire-addr",
            "quire-percpu",
            "quire-sync",
            "quire-rcu",
            "quire-heap",
            "quire-idle",
            "quire-frames",
            "quire-owned",
            "quire-pagetable",
            "quire-tlb",
            "quire-aspace",
        ],
    ),
    ("quire-cost", &[]),
    ("quire-cli", &["quire-cost"]),
    ("quire-bench-guest", &[]),
    (
        "quire-bench-host",
        &[
            "quire-addr",
            "quire-percpu",
            "quire-sync",
            "quire-refcache",
            "quire-rcu",
            "quire-bonsai",
            "quire-radix",
            "quire-frames",
            "quire-aspace",
        ],
    ),
    (
        "quire-bench-memory",
        &["quire-addr", "quire-percpu", "quire-heap", "quire-owned", "quire-tlb", "quire-aspace"],
    ),
    ("quire-tracer", &[]),
    // What runs on Linux: of the crates it takes the primitives that models replace, and the seeded faults.
    ("quire-vmprim", &["quire-percpu", "quire-sync"]),
    ("quire-bench-vmprim", &["quire-vmprim"]),
    ("quire-fence", &["quire-vmprim"]),
    ("quire-fence-preload", &["quire-fence"]),
    ("quire-pheap", &[]),
    ("quire-snap", &["quire-percpu", "quire-sync", "quire-vmprim"]),
    ("quire-kvd", &["quire-pheap", "quire-snap", "quire-vmprim"]),
];

/// What each package of the workspace says that it depends on, of the workspace's packages.
fn dependencies() -> BTreeMap<String, Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version=1", "--manifest-path", manifest])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|package| {
            let own = name(package);
            let uses = package["dependencies"].as_array().unwrap().iter().map(name);
            // For tests a crate may depend on itself, with other features.
            let uses = uses.filter(|other| other.starts_with("quire-") && *other != own);
            (own.clone(), uses.collect())
        })
        .collect()
}

#[test]
fn no_dependency_points_up() {
    for (package, uses) in dependencies() {
        let allowed = MAY_USE.iter().find(|(name, _)| *name == package);
        let allowed =
            allowed.unwrap_or_else(|| panic!("{package} has no place in the order of dependencies")).1;
        for other in uses {
            assert!(allowed.contains(&other.as_str()), "{package} must not use {other}");
        }
    }
}

#[test]
fn the_order_itself_has_no_cycle() {
    let mut below: Vec<&str> = Vec::new();
    for (package, uses) in MAY_USE {
        assert!(uses.iter().all(|other| below.contains(other)), "{package} comes before what it may use");
        below.push(package);
    }
}

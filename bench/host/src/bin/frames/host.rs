//! What the numbers were measured on.

use std::{collections::BTreeMap, fs};

use serde_json::{Value, json};

use crate::team;

/// The host, as far as it says: processor, its frequency at the moment, CPUs, load.
pub fn describe() -> BTreeMap<&'static str, Value> {
    let mut host = BTreeMap::from([
        ("cpus", json!(team::host_cpus().len())),
        ("arch", json!(std::env::consts::ARCH)),
        ("debug_build", json!(cfg!(debug_assertions))),
    ]);
    if let Ok(info) = fs::read_to_string("/proc/cpuinfo") {
        if let Some(model) = field(&info, "model name") {
            host.insert("processor", json!(model));
        }
        if let Some(mhz) = field(&info, "cpu MHz").and_then(|mhz| mhz.parse::<f64>().ok()) {
            host.insert("mhz", json!(mhz));
        }
        let guest = field(&info, "flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor"));
        host.insert("virtual_machine", json!(guest));
    }
    if let Ok(version) = fs::read_to_string("/proc/sys/kernel/osrelease") {
        host.insert("linux", json!(version.trim()));
    }
    if let Some(governor) = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") {
        host.insert("governor", json!(governor));
    }
    host
}

/// How many threads want to run, on average over the last minute.
pub fn load() -> Option<f64> {
    read("/proc/loadavg")?.split(' ').next()?.parse().ok()
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// The first processor's line of that name.
fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
        .map(|(_, v)| v.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_go_by_their_names() {
        let info = "processor\t: 0\nmodel name\t: Some CPU: 3 GHz\ncpu MHz\t\t: 2600.000\n";
        assert_eq!(field(info, "model name"), Some("Some CPU: 3 GHz"));
        assert_eq!(field(info, "cpu MHz"), Some("2600.000"));
        assert_eq!(field(info, "model"), None);
    }
}

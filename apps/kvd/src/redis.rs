//! Redis's own checkpoint, for reference: `BGSAVE` forks, and `INFO` says how long that took and what was copied since.
//! Needs the packages `redis-server` and `redis-tools`.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// What a `BGSAVE` under load has cost.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The fork, during which nothing was served.
    pub pause_ms: f64,
    /// Memory that was copied meanwhile.
    pub copied_mib: f64,
}

/// With so many keys of so many bytes, in `folder`.
///
/// # Errors
/// A line that says what is missing or wrong.
pub fn measure(folder: &Path, keys: u64, value: u32) -> Result<Cost, String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
    let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    let port = port.map_err(|error| format!("no port: {error}"))?.port();
    let mut server = Command::new("redis-server")
        .args([
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            "127.0.0.1",
            "--dir",
        ])
        .arg(folder)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|_| {
            "redis-server is left out: install the packages redis-server and redis-tools".to_owned()
        })?;
    let result = drive(port, keys, value);
    // It has nothing to keep.
    let _ = server.kill();
    let _ = server.wait();
    let _ = std::fs::remove_dir_all(folder);
    result
}

fn drive(port: u16, keys: u64, value: u32) -> Result<Cost, String> {
    let begin = Instant::now();
    let stream = loop {
        match TcpStream::connect(("127.0.0.1", port)) {
            Ok(stream) => break stream,
            Err(error) if begin.elapsed() > Duration::from_secs(10) => {
                return Err(format!("redis-server does not answer: {error}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    let benchmark = |operations: u64| {
        let mut command = Command::new("redis-benchmark");
        let numbers = [port.into(), operations, keys, value.into()].map(|n: u64| n.to_string());
        let [port, operations, keys, value] = &numbers;
        command.args(["-p", port, "-t", "set", "-n", operations, "-r", keys, "-d", value, "-P", "16", "-q"]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let missing = |error: std::io::Error| format!("redis-benchmark is left out: {error}");
    // Keys are drawn at random: most of them.
    benchmark(3 * keys).status().map_err(missing)?;
    let mut load = benchmark(20 * keys).spawn().map_err(missing)?;
    std::thread::sleep(Duration::from_millis(300));
    let mut client = BufReader::new(stream);
    let mut ask = |command: &str, until: &str| -> Result<String, String> {
        let wrong = |error: std::io::Error| format!("redis-server is gone: {error}");
        client.get_mut().write_all(format!("{command}\r\n").as_bytes()).map_err(wrong)?;
        let mut line = String::new();
        loop {
            line.clear();
            if client.read_line(&mut line).map_err(wrong)? == 0 {
                return Err("redis-server is gone".to_owned());
            }
            if let Some(rest) = line.trim_end().strip_prefix(until) {
                return Ok(rest.to_owned());
            }
        }
    };
    let mut measured = || {
        ask("BGSAVE", "+")?;
        while ask("INFO persistence", "rdb_bgsave_in_progress:")? != "0" {
            std::thread::sleep(Duration::from_millis(20));
        }
        let number = |text: String| text.parse::<f64>().map_err(|_| format!("{text} is no number"));
        let copied = number(ask("INFO persistence", "rdb_last_cow_size:")?)?;
        let pause = number(ask("INFO stats", "latest_fork_usec:")?)?;
        Ok(Cost { pause_ms: pause / 1e3, copied_mib: copied / f64::from(1 << 20) })
    };
    let cost = measured();
    let _ = load.kill();
    let _ = load.wait();
    cost
}

//! A server and its clients: replies, checkpoints, and what is there after an end of either kind.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(folder: &Path, mode: &str) -> Self {
        Self::with_checkpoints(folder, mode, "3600")
    }
    /// With a checkpoint `every` so many seconds.
    fn with_checkpoints(folder: &Path, mode: &str, every: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvd"))
            .args(["serve", "--port", "0", "--mem", "16", "--every", every, "--mode", mode, "--dir"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("it says {line:?}"));
        Self { child, port }
    }
    fn client(&self) -> Client {
        Client(BufReader::new(TcpStream::connect(("127.0.0.1", self.port)).unwrap()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn send(&mut self, words: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).bytes());
            bytes.extend(*word);
            bytes.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).unwrap();
    }
    /// A reply, as text: strings as they are, arrays in brackets.
    fn reply(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("$", "-1")) => "nil".to_owned(),
            Some(("$", len)) => {
                let mut bytes = vec![0; len.parse::<usize>().unwrap() + 2];
                self.0.read_exact(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes[..bytes.len() - 2]).into_owned()
            }
            Some(("*", len)) => {
                let parts: Vec<_> = (0..len.parse::<usize>().unwrap()).map(|_| self.reply()).collect();
                format!("[{}]", parts.join(" "))
            }
            _ => line.to_owned(),
        }
    }
    fn ask(&mut self, line: &str) -> String {
        self.send(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        self.reply()
    }
    /// As [`Self::ask`], of a server that may be killed meanwhile: the line that it answers, if that is whole.
    fn answer(&mut self, line: &str) -> Option<String> {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).ok()?;
        let mut reply = String::new();
        self.0.read_line(&mut reply).ok()?;
        reply.strip_suffix("\r\n").map(str::to_owned)
    }
    /// The number that `key` has; 0 if there is none.
    fn number(&mut self, key: &str) -> u64 {
        let text = self.ask(&format!("GET {key}"));
        if text == "nil" { 0 } else { text.parse().unwrap_or_else(|_| panic!("{key} is {text:?}")) }
    }
}

#[test]
fn commands_do_as_their_replies_say() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "trap");
    let mut client = server.client();
    for (line, reply) in [
        ("PING", "+PONG"),
        ("ping hello", "hello"),
        ("GET a", "nil"),
        ("SET a one", "+OK"),
        ("GET a", "one"),
        ("SET a a-longer-value-that-does-not-fit-into-the-object-it-had-before", "+OK"),
        ("INCR a", "-ERR value is not an integer or out of range"),
        ("INCR n", ":1"),
        ("INCRBY n 41", ":42"),
        ("DECR n", ":41"),
        ("GET n", "41"),
        ("EXISTS a n x", ":2"),
        ("DBSIZE", ":2"),
        ("DEL a x", ":1"),
        ("DBSIZE", ":1"),
        ("SCAN 0 COUNT 100", "[0 [n]]"),
        ("SCAN 0 MATCH n* COUNT 100", "[0 [n]]"),
        ("scan 0 count 100 match [a-m]", "[0 []]"),
        ("SCAN x", "-ERR syntax error: SCAN takes a cursor, COUNT with a number, and MATCH with a pattern"),
        ("CONFIG GET save", "[save ]"),
        ("CONFIG GET appendonly", "[appendonly no]"),
        ("COMMAND", "[]"),
        ("SET n", "-ERR wrong number of arguments for 'set'"),
        ("SET n 1 EX 5", "-ERR syntax error: SET takes a key and a value, and no options here"),
        ("FLY", "-ERR unknown command 'FLY'"),
    ] {
        assert_eq!(client.ask(line), reply, "{line}");
    }
    let binary: Vec<u8> = (0..=255).collect();
    client.send(&[b"SET", b"bytes", &binary]);
    assert_eq!(client.reply(), "+OK");
    // A line of words, and commands one after the other without waiting.
    client.0.get_mut().write_all(b"get n\r\nPING\r\n").unwrap();
    assert_eq!((client.reply(), client.reply()), ("41".to_owned(), "+PONG".to_owned()));
    client.0.get_mut().write_all(b"*1\r\n+PING\r\n").unwrap();
    assert_eq!(client.reply(), "-ERR Protocol error: invalid bulk length");
    assert_eq!(client.0.read(&mut [0]).unwrap(), 0, "the connection goes on");
}

#[test]
fn what_was_saved_is_there_after_a_kill_and_after_a_shutdown() {
    for mode in ["trap", "precopy", "fork"] {
        let folder = tempfile::tempdir().unwrap();
        {
            let server = Server::start(folder.path(), mode);
            let mut client = server.client();
            for i in 0..500 {
                assert_eq!(client.ask(&format!("SET key{i} value{i}")), "+OK");
            }
            assert_eq!(client.ask("SAVE"), "+OK");
            assert_eq!(client.ask("SET key7 later"), "+OK");
        }
        {
            let mut server = Server::start(folder.path(), mode);
            let mut client = server.client();
            assert_eq!(client.ask("DBSIZE"), ":500");
            assert_eq!(client.ask("GET key7"), "value7", "{mode}");
            assert_eq!(client.ask("SET key7 last"), "+OK");
            client.send(&[b"SHUTDOWN"]);
            assert!(server.child.wait().unwrap().success());
        }
        let server = Server::start(folder.path(), mode);
        let mut client = server.client();
        assert_eq!(client.ask("GET key7"), "last");
        for i in (0..500).filter(|&i| i != 7) {
            assert_eq!(client.ask(&format!("GET key{i}")), format!("value{i}"));
        }
    }
}

#[test]
fn clients_write_while_checkpoints_are_made() {
    let folder = tempfile::tempdir().unwrap();
    let add = |server: &Server| {
        std::thread::scope(|scope| {
            for thread in 0..3 {
                scope.spawn(move || {
                    let mut client = server.client();
                    for i in 0..400 {
                        assert!(client.ask("INCR sum").starts_with(':'));
                        assert_eq!(client.ask(&format!("SET {thread}:{i} {i}")), "+OK");
                    }
                });
            }
            let mut client = server.client();
            for _ in 0..5 {
                assert_eq!(client.ask("SAVE"), "+OK");
            }
        });
    };
    let server = Server::start(folder.path(), "trap");
    add(&server);
    let mut client = server.client();
    assert_eq!(client.ask("GET sum"), "1200");
    assert_eq!(client.ask("SAVE"), "+OK");
    drop(server);
    let server = Server::start(folder.path(), "precopy");
    let mut client = server.client();
    assert_eq!((client.ask("GET sum"), client.ask("DBSIZE")), ("1200".to_owned(), ":1201".to_owned()));
    add(&server);
    assert_eq!(client.ask("GET sum"), "2400");
}

/// Redis's own benchmark, if it is installed, while checkpoints are made.
#[test]
fn redis_benchmark_drives_it() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "trap");
    let port = server.port.to_string();
    let mut command = Command::new("redis-benchmark");
    command.args([
        "-p",
        &port,
        "-t",
        "ping,set,get,incr",
        "-n",
        "4000",
        "-r",
        "1000",
        "-d",
        "100",
        "-P",
        "8",
    ]);
    let Ok(child) = command.args(["-c", "10", "--csv"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()
    else {
        let line = b"left out: redis-benchmark: install the package redis-tools\n";
        std::io::stderr().write_all(line).unwrap();
        return;
    };
    let mut client = server.client();
    (0..3).for_each(|_| assert_eq!(client.ask("SAVE"), "+OK"));
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && ["\"SET\"", "\"GET\"", "\"INCR\""].iter().all(|row| said.contains(row)),
        "{said}"
    );
    let keys: u64 = client.ask("DBSIZE").trim_start_matches(':').parse().unwrap();
    assert!((900..=2100).contains(&keys), "{keys}");
}

/// How often servers are killed: `QUIRE_FULL` or `KVD_KILLS=N` for more, with a checkpoint each second then.
fn kills() -> (u32, &'static str) {
    let number = std::env::var("KVD_KILLS").ok().and_then(|text| text.parse().ok());
    let full = std::env::var_os("QUIRE_FULL").map(|_| 250);
    number.or(full).map_or((6, "0.1"), |kills| (kills, "1"))
}

/// What a client knows of two keys, which it sets in turn to the same numbers.
#[derive(Clone, Copy, Default, Debug)]
struct Known {
    /// What was in both when a checkpoint began that was told to be durable.
    durable: u64,
    /// The last that was sent.
    sent: u64,
}

/// Set `a` and then `b`, to one number after the other, and have it saved now and then, until there is no answer.
fn set_in_turn(mut client: Client, mut known: Known) -> Known {
    loop {
        known.sent += 1;
        let number = known.sent;
        for key in ["a", "b"] {
            match client.answer(&format!("SET {key} {number}")) {
                Some(answer) => assert_eq!(answer, "+OK"),
                None => return known,
            }
        }
        if number.is_multiple_of(200) {
            match client.answer("SAVE") {
                Some(answer) if answer == "+OK" => known.durable = number,
                // The server is at one of its own.
                Some(answer) => assert!(answer.contains("in progress"), "{answer}"),
                None => return known,
            }
        }
    }
}

/// What is restored is what there was at one moment, no earlier than the last save that was told: `b` follows `a`. And what Redis's
/// benchmark has stored is whole.
fn look_at(mut client: Client, known: Known) -> Known {
    let (a, b) = (client.number("a"), client.number("b"));
    assert!(a == b || a == b + 1, "a is {a} and b is {b}: no moment had both");
    assert!(known.durable <= b && a <= known.sent, "a is {a} and b is {b}, and {known:?}");
    let (mut keys, mut cursor) = (BTreeSet::new(), "0".to_owned());
    loop {
        let found = client.ask(&format!("SCAN {cursor} COUNT 1000"));
        let (next, rest) = found[1..].split_once(' ').unwrap();
        keys.extend(
            rest.trim_matches(['[', ']']).split(' ').filter(|key| !key.is_empty()).map(str::to_owned),
        );
        cursor = next.to_owned();
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(client.ask("DBSIZE"), format!(":{}", keys.len()));
    for key in keys.iter().filter(|key| key.starts_with("key:")) {
        let value = client.ask(&format!("GET {key}"));
        assert_eq!(value.len(), 100, "{key} is {value:?}");
    }
    for key in keys.iter().filter(|key| key.starts_with("counter:")) {
        assert!(client.number(key) > 0, "{key}");
    }
    // What was not durable is set anew.
    Known { durable: b, sent: a }
}

/// A server is killed, at any moment, while Redis's benchmark, if it is installed, and a client of ours store what they can.
fn killed_under_load(mode: &str, seed: u64) {
    let (kills, every) = kills();
    let mut random = fastrand::Rng::with_seed(seed);
    let (folder, mut known, mut restored) = (tempfile::tempdir().unwrap(), Known::default(), BTreeSet::new());
    for _ in 0..kills {
        let mut server = Server::with_checkpoints(folder.path(), mode, every);
        known = look_at(server.client(), known);
        restored.insert(known.sent);
        let port = server.port.to_string();
        let load =
            ["-p", &port, "-t", "set,incr", "-r", "2000", "-d", "100", "-P", "4", "-c", "8", "-l", "-q"];
        let load =
            Command::new("redis-benchmark").args(load).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        if load.is_err() {
            let line = b"left out: redis-benchmark: install the package redis-tools\n";
            std::io::stderr().write_all(line).unwrap();
        }
        let client = server.client();
        let stores = std::thread::spawn(move || set_in_turn(client, known));
        let period = every.parse::<f64>().unwrap();
        std::thread::sleep(Duration::from_secs_f64(random.f64().mul_add(2.5 * period, 0.05)));
        server.child.kill().unwrap();
        server.child.wait().unwrap();
        known = stores.join().unwrap();
        if let Ok(mut load) = load {
            let _ = load.kill();
            let _ = load.wait();
        }
    }
    let server = Server::start(folder.path(), mode);
    look_at(server.client(), known);
    println!("{mode}: {kills} kills, {} states restored", restored.len());
    assert!(restored.len() > 1, "there was hardly any load");
}

#[test]
fn a_server_that_is_killed_under_load_restores_one_moment_by_traps() {
    killed_under_load("trap", 1);
}

#[test]
fn a_server_that_is_killed_under_load_restores_one_moment_by_rounds() {
    killed_under_load("precopy", 2);
}

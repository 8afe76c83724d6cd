//! A server and its clients: replies, checkpoints, and what is there after an end of either kind.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
};

struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(folder: &Path, mode: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_kvd"))
            .args(["serve", "--port", "0", "--mem", "16", "--every", "3600", "--mode", mode, "--dir"])
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

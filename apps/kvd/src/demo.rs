//! `kvd demo`: real records, a checkpoint under load, `kill -9`, and what is there afterwards.
//!
//! The records are Debian's: the entries of the GNU Collaborative International Dictionary of English (package
//! `dict-gcide`, `/usr/share/dictd`) and the package index (`apt-cache dumpavail`). They go over TCP to a server of its own, which
//! makes a checkpoint four times a second. Once a `SAVE` has been answered, a client writes on, and the server is killed.
//! A new one must have every record as it was.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

type Records = HashMap<Vec<u8>, Vec<u8>>;

fn output(program: &str, words: &[&str]) -> Option<Vec<u8>> {
    let output = Command::new(program).args(words).stderr(Stdio::null()).output().ok()?;
    output.status.success().then_some(output.stdout)
}

/// A number as dictd writes it: digits of base 64.
fn digits(text: &[u8]) -> Option<usize> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    text.iter().try_fold(0, |sum, digit| Some(sum * 64 + DIGITS.iter().position(|other| other == digit)?))
}

fn dictionary(records: &mut Records) -> Option<usize> {
    let index = std::fs::read("/usr/share/dictd/gcide.index").ok()?;
    let text = output("zcat", &["-f", "/usr/share/dictd/gcide.dict.dz"])?;
    let before = records.len();
    for line in index.split(|byte| *byte == b'\n') {
        let mut fields = line.split(|byte| *byte == b'\t');
        let (Some(word), Some(from), Some(len)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let range = digits(from).zip(digits(len)).and_then(|(from, len)| text.get(from..from + len));
        range.map(|entry| records.insert([b"word:", word].concat(), entry.to_vec()));
    }
    Some(records.len() - before)
}

fn packages(records: &mut Records) -> Option<usize> {
    let text = output("apt-cache", &["dumpavail"])?;
    let before = records.len();
    let text = String::from_utf8_lossy(&text);
    for record in text.split("\n\n") {
        let name = record.lines().find_map(|line| line.strip_prefix("Package: "));
        name.map(|name| records.insert(format!("package:{name}").into_bytes(), record.as_bytes().to_vec()));
    }
    Some(records.len() - before)
}

struct Server(Child, u16);

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(folder: &Path, mem: u64) -> Result<Server, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut child = Command::new(program)
        .args(["serve", "--port", "0", "--every", "0.25", "--mem", &mem.to_string(), "--dir"])
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a server: {error}"))?;
    let mut line = String::new();
    let said = child.stdout.take().map(|out| BufReader::new(out).read_line(&mut line));
    let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
    let server = Server(child, port.unwrap_or(0));
    match said {
        Some(Ok(_)) if server.1 != 0 => Ok(server),
        _ => Err("the server does not start".to_owned()),
    }
}

fn command(words: &[&[u8]], to: &mut Vec<u8>) {
    to.extend(format!("*{}\r\n", words.len()).bytes());
    for word in words {
        to.extend(format!("${}\r\n", word.len()).bytes());
        to.extend(*word);
        to.extend(b"\r\n");
    }
}

fn reply(from: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let len = line.trim_end().strip_prefix('$').and_then(|len| len.parse::<usize>().ok());
    let Some(len) = len else { return Ok((!line.starts_with("$-1")).then(|| line.trim_end().into())) };
    let mut bytes = vec![0; len + 2];
    from.read_exact(&mut bytes)?;
    bytes.truncate(len);
    Ok(Some(bytes))
}

/// Send these, a batch at a time, and give each reply to `each`.
fn ask<'r>(
    server: &Server,
    commands: impl Iterator<Item = Vec<&'r [u8]>>,
    mut each: impl FnMut(&[&'r [u8]], Option<Vec<u8>>) -> Result<(), String>,
) -> Result<(), String> {
    let text = |error: std::io::Error| format!("the server is gone: {error}");
    let stream = TcpStream::connect(("127.0.0.1", server.1)).map_err(text)?;
    let mut replies = BufReader::new(stream.try_clone().map_err(text)?);
    let mut stream = stream;
    let mut commands = commands.peekable();
    while commands.peek().is_some() {
        let batch: Vec<_> = commands.by_ref().take(64).collect();
        let mut bytes = Vec::new();
        batch.iter().for_each(|words| command(words, &mut bytes));
        stream.write_all(&bytes).map_err(text)?;
        for words in &batch {
            each(words, reply(&mut replies).map_err(text)?)?;
        }
    }
    Ok(())
}

fn is_ok(words: &[&[u8]], reply: Option<Vec<u8>>) -> Result<(), String> {
    match reply {
        Some(text) if text.starts_with(b"+") || text.starts_with(b":") => Ok(()),
        other => Err(format!(
            "{} was answered by {:?}",
            String::from_utf8_lossy(words[0]),
            other.map(|text| String::from_utf8_lossy(&text).into_owned())
        )),
    }
}

/// Do it in `folder`.
///
/// # Errors
/// A line that says what is wrong.
pub fn run(folder: &Path) -> Result<(), String> {
    let mut records = Records::new();
    match dictionary(&mut records) {
        Some(count) => println!("{count} words of the dictionary"),
        None => println!("the dictionary is left out: install the package dict-gcide"),
    }
    match packages(&mut records) {
        Some(count) => println!("{count} packages of the index"),
        None => println!("the package index is left out: there is no apt-cache"),
    }
    let bytes: usize = records.iter().map(|(key, value)| key.len() + value.len() + 64).sum();
    if records.is_empty() {
        return Err("there are no records".to_owned());
    }
    let mem = ((2 * bytes as u64) >> 20) + 64;
    let server = start(folder, mem)?;
    let begin = Instant::now();
    let sets = records.iter().map(|(key, value)| vec![&b"SET"[..], key, value]);
    ask(&server, sets, is_ok)?;
    println!(
        "{} MB set in {:.1} s, with a checkpoint every 0.25 s",
        bytes / 1_000_000,
        begin.elapsed().as_secs_f64()
    );
    // A checkpoint of its own may be running.
    let begin = Instant::now();
    while ask(&server, std::iter::once(vec![&b"SAVE"[..]]), is_ok).is_err() {
        if begin.elapsed() > Duration::from_secs(60) {
            return Err("no checkpoint comes about".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let begin = Instant::now();
    let mut more = 0_u64;
    let names: Vec<Vec<u8>> = (0..1000).map(|i| format!("counter:{i}").into_bytes()).collect();
    while begin.elapsed() < Duration::from_millis(700) {
        ask(&server, names.iter().map(|name| vec![&b"INCR"[..], name]), is_ok)?;
        more += names.len() as u64;
    }
    drop(server);
    println!("saved; {more} operations more; killed");
    let begin = Instant::now();
    let server = start(folder, mem)?;
    println!("restored in {:.2} s", begin.elapsed().as_secs_f64());
    let mut equal = 0;
    ask(&server, records.keys().map(|key| vec![&b"GET"[..], key]), |words, reply| {
        if reply.as_ref() == records.get(words[1]) {
            equal += 1;
            return Ok(());
        }
        Err(format!("{} is not what it was", String::from_utf8_lossy(words[1])))
    })?;
    println!("{equal} records, all as they were");
    Ok(())
}

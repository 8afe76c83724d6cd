//! Connections, each with a thread, and the commands.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use crate::{
    glob,
    keeper::{Done, Keeper},
    resp::{Parsed, Replies, parse},
    table::{MAX_KEY, Refused, Table},
};

/// The table, who keeps it, and what connections share.
#[derive(Debug)]
pub struct Server {
    table: Table,
    keeper: Keeper,
    /// Seconds since 1970 of the last checkpoint.
    saved: AtomicU64,
    ends: AtomicBool,
    end: (Mutex<bool>, Condvar),
    port: u16,
}

/// What a connection does after a command.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    Close,
}

impl Server {
    /// A server of what a keeper has.
    ///
    /// # Errors
    /// A line that says what is wrong with the table.
    pub fn new(keeper: Keeper, port: u16) -> Result<Arc<Self>, String> {
        let fresh = keeper.restored().is_none();
        // SAFETY: the server has both, and connections have the server.
        let memory = unsafe { keeper.bytes() };
        let table = Table::open(memory, fresh).map_err(|error| error.to_string())?;
        Ok(Arc::new(Self {
            table,
            keeper,
            saved: AtomicU64::new(0),
            ends: AtomicBool::new(false),
            end: (Mutex::new(false), Condvar::new()),
            port,
        }))
    }

    /// The table.
    pub const fn table(&self) -> &Table {
        &self.table
    }

    /// Make a checkpoint now.
    ///
    /// # Errors
    /// A line that says what is wrong.
    pub fn save(&self) -> Result<Done, String> {
        let done = self.keeper.checkpoint(self.table.gate(), &|| self.table.used(), |_| ())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Relaxed: a time.
        self.saved.store(now, Ordering::Relaxed);
        Ok(done)
    }

    fn say_warnings(&self) {
        self.keeper.take_warnings().iter().for_each(|warning| eprintln!("kvd: {warning}"));
    }

    /// Serve until a client says `SHUTDOWN`, with a checkpoint every so often.
    ///
    /// # Errors
    /// A line about the listener.
    pub fn run(self: &Arc<Self>, listener: &TcpListener, every: Option<Duration>) -> Result<(), String> {
        self.say_warnings();
        let saver = every.map(|every| {
            let server = self.clone();
            std::thread::spawn(move || server.save_every(every))
        });
        for stream in listener.incoming() {
            // Acquire: pairs with Release in `shut_down`.
            if self.ends.load(Ordering::Acquire) {
                break;
            }
            let stream = stream.map_err(|error| format!("cannot accept connections: {error}"))?;
            let server = self.clone();
            let spawned = vmprim::spawn("connection", move || server.converse(stream));
            if let Err(error) = spawned {
                eprintln!("kvd: cannot start a thread for a connection: {error}");
            }
        }
        if let Some(saver) = saver {
            // A panic of it was printed.
            let _ = saver.join();
        }
        Ok(())
    }

    fn save_every(&self, every: Duration) {
        let (ends, changed) = &self.end;
        let mut guard = ends.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (next, timeout) = changed.wait_timeout(guard, every).unwrap_or_else(PoisonError::into_inner);
            if *next {
                return;
            }
            drop(next);
            if timeout.timed_out() {
                if let Err(error) = self.save() {
                    eprintln!("kvd: {error}");
                }
                self.say_warnings();
            }
            guard = ends.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn shut_down(&self) {
        // Release: pairs with Acquire in `run`.
        self.ends.store(true, Ordering::Release);
        *self.end.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.end.1.notify_all();
        // The listener waits for one more.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }

    fn converse(self: &Arc<Self>, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let (mut bytes, mut buffer, mut replies) = (Vec::new(), vec![0; 64 << 10], Replies::default());
        // A client that is gone ends its connection.
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            bytes.extend(&buffer[..count]);
            let mut used = 0;
            let mut next = Next::GoOn;
            while next == Next::GoOn {
                match parse(&bytes[used..]) {
                    Parsed::Partial => break,
                    Parsed::Wrong(what) => {
                        replies.error(&format!("ERR Protocol error: {what}"));
                        next = Next::Close;
                    }
                    Parsed::Command(command, len) => {
                        used += len;
                        next = self.execute(&command, &mut replies);
                    }
                }
            }
            bytes.drain(..used);
            let sent = stream.write_all(&replies.0);
            replies.0.clear();
            if sent.is_err() || next == Next::Close {
                return;
            }
        }
    }

    fn execute(self: &Arc<Self>, command: &[Vec<u8>], replies: &mut Replies) -> Next {
        let Some((name, arguments)) = command.split_first() else { return Next::GoOn };
        let name = String::from_utf8_lossy(name).to_ascii_uppercase();
        if arguments.first().is_some_and(|key| key.len() > MAX_KEY) {
            replies.error("ERR the key is too long: at most 65536 bytes");
            return Next::GoOn;
        }
        match (&*name, arguments) {
            ("PING", []) => replies.simple("PONG"),
            ("PING" | "ECHO", [text]) => replies.bulk(text),
            ("GET", [key]) => {
                let mut value = Vec::new();
                if self.table.get(key, &mut value) { replies.bulk(&value) } else { replies.nil() }
            }
            ("SET", [key, value]) => match self.table.set(&self.table.enter(), key, value) {
                Ok(()) => replies.simple("OK"),
                Err(error) => replies.error(&format!("OOM {error}")),
            },
            ("SET", [_, _, ..]) => {
                replies.error("ERR syntax error: SET takes a key and a value, and no options here")
            }
            ("DEL", [_, ..]) => {
                let gone = arguments.iter().filter(|key| self.table.del(&self.table.enter(), key)).count();
                replies.number(gone as i64);
            }
            ("EXISTS", [_, ..]) => {
                let there = arguments.iter().filter(|key| self.table.get(key, &mut Vec::new())).count();
                replies.number(there as i64);
            }
            ("INCR", [key]) => self.add(key, Some(1), replies),
            ("DECR", [key]) => self.add(key, Some(-1), replies),
            ("INCRBY", [key, by]) => self.add(key, number(by), replies),
            ("SCAN", [cursor, options @ ..]) => self.scan(cursor, options, replies),
            ("DBSIZE", []) => replies.number(self.table.len() as i64),
            ("CONFIG", [get, name]) if get.eq_ignore_ascii_case(b"GET") => {
                let name = String::from_utf8_lossy(name).to_ascii_lowercase();
                let value = match &*name {
                    "save" => Some(""),
                    "appendonly" => Some("no"),
                    _ => None,
                };
                replies.array(if value.is_some() { 2 } else { 0 });
                value.iter().flat_map(|value| [&*name, value]).for_each(|text| replies.bulk(text.as_bytes()));
            }
            ("COMMAND", _) => replies.array(0),
            ("INFO", _) => {
                let (keys, used) = (self.table.len(), self.table.used());
                replies.bulk(format!("# kvd\r\nkeys:{keys}\r\nused_memory:{used}\r\n").as_bytes());
            }
            ("SELECT", [_]) | ("CLIENT", _) => replies.simple("OK"),
            ("SAVE", []) => match self.save() {
                Ok(_) => replies.simple("OK"),
                Err(error) => replies.error(&format!("ERR {error}")),
            },
            ("BGSAVE", _) => {
                let server = self.clone();
                let spawned = std::thread::Builder::new().spawn(move || {
                    if let Err(error) = server.save() {
                        eprintln!("kvd: {error}");
                    }
                });
                match spawned {
                    Ok(_) => replies.simple("Background saving started"),
                    Err(error) => replies.error(&format!("ERR cannot start a thread: {error}")),
                }
            }
            // Relaxed: a time.
            ("LASTSAVE", []) => replies.number(self.saved.load(Ordering::Relaxed) as i64),
            ("SHUTDOWN", options) => {
                let saves = !options.iter().any(|option| option.eq_ignore_ascii_case(b"NOSAVE"));
                if saves && let Err(error) = self.save_last() {
                    replies.error(&format!("ERR {error}; say SHUTDOWN NOSAVE to end all the same"));
                    return Next::GoOn;
                }
                self.shut_down();
                return Next::Close;
            }
            ("QUIT", _) => {
                replies.simple("OK");
                return Next::Close;
            }
            (
                "GET" | "SET" | "DEL" | "INCR" | "DECR" | "INCRBY" | "SCAN" | "DBSIZE" | "ECHO" | "EXISTS"
                | "SAVE",
                _,
            ) => {
                replies.error(&format!("ERR wrong number of arguments for '{}'", name.to_ascii_lowercase()));
            }
            _ => {
                replies.error(&format!("ERR unknown command '{}'", name.chars().take(64).collect::<String>()))
            }
        }
        Next::GoOn
    }

    /// The last checkpoint: one that runs is waited for.
    fn save_last(&self) -> Result<(), String> {
        if matches!(self.keeper, Keeper::None(_)) {
            return Ok(());
        }
        let busy = snap::Error::Busy.to_string();
        loop {
            match self.save() {
                Err(error) if error == busy => std::thread::sleep(Duration::from_millis(5)),
                other => return other.map(drop),
            }
        }
    }

    fn add(&self, key: &[u8], by: Option<i64>, replies: &mut Replies) {
        let sum = by.ok_or(Refused::NoNumber).and_then(|by| self.table.add(&self.table.enter(), key, by));
        match sum {
            Ok(sum) => replies.number(sum),
            Err(Refused::NoNumber) => replies.error("ERR value is not an integer or out of range"),
            Err(Refused::Heap(error)) => replies.error(&format!("OOM {error}")),
        }
    }

    fn scan(&self, cursor: &[u8], options: &[Vec<u8>], replies: &mut Replies) {
        let cursor = std::str::from_utf8(cursor).ok().and_then(|text| text.parse::<u64>().ok());
        let (mut count, mut pattern, mut right) = (Some(10), None, true);
        let (pairs, rest) = options.as_chunks::<2>();
        for [name, value] in pairs {
            match name.to_ascii_uppercase().as_slice() {
                b"COUNT" => count = number(value).filter(|&count| count > 0),
                b"MATCH" => pattern = Some(value),
                _ => right = false,
            }
        }
        let (Some(cursor), Some(count), true) = (cursor, count, right && rest.is_empty()) else {
            replies.error(
                "ERR syntax error: SCAN takes a cursor, COUNT with a number, and MATCH with a pattern",
            );
            return;
        };
        let mut keys = Vec::new();
        let next = self.table.scan(cursor, count as usize, |key, _| {
            if pattern.is_none_or(|pattern| glob::matches(pattern, key)) {
                keys.push(key.to_vec());
            }
        });
        replies.array(2);
        replies.bulk(next.to_string().as_bytes());
        replies.array(keys.len());
        keys.iter().for_each(|key| replies.bulk(key));
    }
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

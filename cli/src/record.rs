//! The control channel: what the kernel (on Linux, the first process) tells the driver.
//!
//! Lines. One that starts with the byte 0x1e (ASCII's record separator, which no message contains) is a record; every
//! other is a message for people. The protocol, and who writes each record:
//!
//! | record | when |
//! | --- | --- |
//! | `ready NS` | first user instruction, NS nanoseconds after the machine's start; from here on input may be sent |
//! | `more` | Linux only: the program took the last frame of input; another may be sent |
//! | `exit N` | the program ended: its exit status, or 128 + signal |
//! | `stats {…}` | the counters, before `exit`, if the command line said `stats=1` |
//! | `place START END STRIDE NAME` | before `exit`, if the command line said `places=1`: a name for the virtual addresses from
//! START to END, numbers in hexadecimal; with a STRIDE, that many bytes belong to each CPU from 0 on. Ranges may contain each other, and of equal ones the last is
//! the newest. Names of objects have the form `WHAT ID` or `WHAT ID: PART` |
//! | `program BIAS END PATH` | likewise: the file of the program at PATH lies up to END, BIAS above the addresses that it says |
//! | `test NAME ok` or `test NAME FAIL why` | one of the kernel's own tests ended |
//! | `panic` | the kernel panicked; the messages that follow say why |

/// A line of the control channel.
#[derive(Debug, PartialEq)]
pub enum Line {
    /// The first user instruction, in nanoseconds since the machine's start.
    Ready(u64),
    /// The next frame of input may be sent.
    More,
    /// The program's exit status.
    Exit(u8),
    /// The counters, as JSON.
    Stats(String),
    /// A test of the kernel's: its name, and why it failed if it did.
    Test(String, Result<(), String>),
    /// A name for a range of memory.
    Place(Place),
    /// Where a program's file is.
    Program(ProgramPlace),
    /// The kernel panicked.
    Panic,
    /// A message of the kernel's.
    Message(String),
}

/// A name for the virtual addresses `start..end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte.
    pub start: u64,
    /// First byte after.
    pub end: u64,
    /// Bytes that belong to each CPU; 0 if it isn't divided among them.
    pub stride: u64,
    /// What it is.
    pub name: String,
}

impl Place {
    /// Whether it is a part of the address space rather than an object.
    pub fn is_area(&self) -> bool {
        self.end - self.start >= 1 << 30
    }
}

/// Where the file of a program lies in a guest's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgramPlace {
    /// Added to the file's addresses.
    pub bias: u64,
    /// First byte after it.
    pub end: u64,
    /// Its path in the guest.
    pub path: String,
}

impl ProgramPlace {
    /// No address below this is the file's: a file that isn't moved begins above the lowest page that can be mapped.
    pub fn first(&self) -> u64 {
        self.bias.max(0x1000)
    }
}

/// Introduces a record.
const MARK: char = '\x1e';

/// Understand one line, without its line feed. A malformed record is a message: it must be seen.
pub fn parse(line: &str) -> Line {
    record(line).unwrap_or_else(|| Line::Message(line.trim_start_matches(MARK).to_owned()))
}

fn record(line: &str) -> Option<Line> {
    let record = line.strip_prefix(MARK)?;
    let (kind, rest) = record.split_once(' ').unwrap_or((record, ""));
    Some(match kind {
        "ready" => Line::Ready(rest.parse().ok()?),
        "more" => Line::More,
        "exit" => Line::Exit(rest.parse().ok()?),
        "stats" => Line::Stats(rest.to_owned()),
        "panic" => Line::Panic,
        "place" => {
            let ([start, end, stride], name) = numbers(rest)?;
            (start < end).then_some(Line::Place(Place { start, end, stride, name }))?
        }
        "program" => {
            let ([bias, end], path) = numbers(rest)?;
            Line::Program(ProgramPlace { bias, end, path })
        }
        "test" => {
            // A name is a sentence, so the verdict is what separates.
            let (name, result) = match rest.strip_suffix(" ok") {
                Some(name) => (name, Ok(())),
                None => {
                    rest.split_once(" FAIL").map(|(name, why)| (name, Err(why.trim_start().to_owned())))?
                }
            };
            Line::Test(name.to_owned(), result)
        }
        _ => return None,
    })
}

/// So many hexadecimal numbers, and what comes after them, which isn't nothing.
fn numbers<const N: usize>(text: &str) -> Option<([u64; N], String)> {
    let mut words = text.splitn(N + 1, ' ');
    let mut found = [0; N];
    for number in &mut found {
        *number = u64::from_str_radix(words.next()?, 16).ok()?;
    }
    Some((found, words.next().filter(|rest| !rest.is_empty())?.to_owned()))
}

/// The address in a backtrace line, `  at 0xADDRESS`.
pub fn backtrace_address(message: &str) -> Option<u64> {
    let text = message.strip_prefix("  at 0x")?.split_whitespace().next()?;
    u64::from_str_radix(text, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_understood() {
        assert_eq!(parse("\x1eready 123456"), Line::Ready(123_456));
        assert_eq!(parse("\x1emore"), Line::More);
        assert_eq!(parse("\x1eexit 139"), Line::Exit(139));
        assert_eq!(parse("\x1estats {\"a\": 1}"), Line::Stats("{\"a\": 1}".into()));
        assert_eq!(parse("\x1etest pipes are full ok"), Line::Test("pipes are full".into(), Ok(())));
        assert_eq!(
            parse("\x1etest pipes FAIL 3 of 4 bytes"),
            Line::Test("pipes".into(), Err("3 of 4 bytes".into()))
        );
        assert_eq!(parse("\x1etest a b FAIL"), Line::Test("a b".into(), Err(String::new())));
        assert_eq!(parse("\x1epanic"), Line::Panic);
        let place = Place { start: 0x10, end: 0x20, stride: 8, name: "thread 3: scheduling".into() };
        assert_eq!(parse("\x1eplace 10 20 8 thread 3: scheduling"), Line::Place(place));
        let program = ProgramPlace { bias: 0x5000, end: 0xabc0, path: "/bin/a b".into() };
        assert_eq!(parse("\x1eprogram 5000 abc0 /bin/a b"), Line::Program(program));
    }

    #[test]
    fn everything_else_is_a_message() {
        for line in ["", "exit 3", "cpu 1 is online", " \x1eexit 3"] {
            assert_eq!(parse(line), Line::Message(line.into()));
        }
        for bad in [
            "exit",
            "exit 256",
            "exit -1",
            "exit 1 2",
            "ready",
            "test",
            "test x",
            "test x maybe",
            "frob 1",
            "place 20 10 0 x",
            "place 1 2 3",
            "place 1 2 3 ",
            "program 1 x /p",
        ] {
            assert_eq!(parse(&format!("\x1e{bad}")), Line::Message(bad.into()));
        }
    }

    #[test]
    fn backtrace_lines_carry_an_address() {
        assert_eq!(backtrace_address("  at 0xffffffff80101234"), Some(0xffff_ffff_8010_1234));
        assert_eq!(backtrace_address("  at 0x10 in boot"), Some(0x10));
        assert_eq!(backtrace_address("at 0x10"), None);
        assert_eq!(backtrace_address("  at 0xzz"), None);
    }
}

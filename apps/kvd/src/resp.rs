//! The protocol: commands as arrays of strings, or as lines of words; replies.

/// The longest command, in arguments.
const MAX_WORDS: usize = 1 << 16;
/// The longest line.
const MAX_LINE: usize = 64 << 10;

/// A command's words.
pub type Command = Vec<Vec<u8>>;

/// What the beginning of some bytes is.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A command, and how many bytes it has.
    Command(Command, usize),
    /// The beginning of one.
    Partial,
    /// No command, ever.
    Wrong(&'static str),
}

/// The line that begins at `at`, and where the next one does.
fn line(bytes: &[u8], at: usize) -> Result<Option<(&[u8], usize)>, &'static str> {
    let rest = bytes.get(at..).unwrap_or_default();
    match rest.iter().position(|&byte| byte == b'\n') {
        Some(end) => Ok(Some((rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]), at + end + 1))),
        None if rest.len() > MAX_LINE => Err("a line is too long"),
        None => Ok(None),
    }
}

/// A length after a mark.
fn length(line: &[u8], mark: u8, most: usize, wrong: &'static str) -> Result<usize, &'static str> {
    let digits = line.strip_prefix(&[mark]).ok_or(wrong)?;
    let number = std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok());
    number.filter(|&number| number <= most).ok_or(wrong)
}

/// Parse the command that some bytes begin with.
pub fn parse(bytes: &[u8]) -> Parsed {
    match parse_inner(bytes) {
        Ok(Some((command, used))) => Parsed::Command(command, used),
        Ok(None) => Parsed::Partial,
        Err(wrong) => Parsed::Wrong(wrong),
    }
}

fn parse_inner(bytes: &[u8]) -> Result<Option<(Command, usize)>, &'static str> {
    let Some((first, mut at)) = line(bytes, 0)? else { return Ok(None) };
    if first.first() != Some(&b'*') {
        let words = first.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        return Ok(Some((words.map(<[u8]>::to_vec).collect(), at)));
    }
    let count = length(first, b'*', MAX_WORDS, "invalid multibulk length")?;
    let mut command = Vec::new();
    for _ in 0..count {
        let Some((head, body)) = line(bytes, at)? else { return Ok(None) };
        let len = length(head, b'$', crate::table::MAX_VALUE, "invalid bulk length")?;
        let Some(word) = bytes.get(body..body + len + 2) else { return Ok(None) };
        let word = word.strip_suffix(b"\r\n").ok_or("a string does not end where it should")?;
        command.push(word.to_vec());
        at = body + len + 2;
    }
    Ok(Some((command, at)))
}

/// Replies, one after the other.
#[derive(Debug, Default)]
pub struct Replies(pub Vec<u8>);

impl Replies {
    /// A word that all is well.
    pub fn simple(&mut self, text: &str) {
        self.0.extend(format!("+{text}\r\n").bytes());
    }
    /// What is wrong, in one line.
    pub fn error(&mut self, text: &str) {
        self.0.extend(format!("-{}\r\n", text.replace(['\r', '\n'], " ")).bytes());
    }
    /// A number.
    pub fn number(&mut self, number: i64) {
        self.0.extend(format!(":{number}\r\n").bytes());
    }
    /// A string.
    pub fn bulk(&mut self, bytes: &[u8]) {
        self.0.extend(format!("${}\r\n", bytes.len()).bytes());
        self.0.extend(bytes);
        self.0.extend(b"\r\n");
    }
    /// Nothing.
    pub fn nil(&mut self) {
        self.0.extend(b"$-1\r\n");
    }
    /// So many replies follow as one.
    pub fn array(&mut self, len: usize) {
        self.0.extend(format!("*{len}\r\n").bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &[&str], used: usize) -> Parsed {
        Parsed::Command(words.iter().map(|word| word.as_bytes().to_vec()).collect(), used)
    }

    #[test]
    fn commands_come_whole_in_pieces_or_wrong() {
        let set = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\nPING\r\n";
        assert_eq!(parse(set), command(&["SET", "k", "a\r\nb"], set.len() - 6));
        let end = set.len() - 6;
        (0..end).for_each(|len| assert_eq!(parse(&set[..len]), Parsed::Partial, "{len}"));
        assert_eq!(parse(b"  get  key \n"), command(&["get", "key"], 12));
        assert_eq!(parse(b"\r\n"), command(&[], 2));
        assert_eq!(parse(b"*0\r\n"), command(&[], 4));
        for wrong in [
            "*x\r\n",
            "*-1\r\n",
            "*99999999\r\n",
            "*1\r\n+3\r\n",
            "*1\r\n$99999999999\r\n",
            "*1\r\n$1\r\nabc\r\n",
        ] {
            assert!(matches!(parse(wrong.as_bytes()), Parsed::Wrong(_)), "{wrong:?}");
        }
        assert!(matches!(parse(&vec![b'a'; MAX_LINE + 1]), Parsed::Wrong(_)));
    }
}

//! Patterns as Redis has them: `*`, `?`, `[a-z]`, `[^a]`, and `\` before a character that is meant as such.

/// Whether `text` is what `pattern` says. Of several `*` only the last is ever tried anew, so the time is at most the product
/// of the lengths.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    // Where the last star was, and how much of the text it stands for.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            None if t == text.len() => return true,
            Some(b'*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            None => None,
            Some(_) => text.get(t).and_then(|&byte| one(pattern.get(p..).unwrap_or_default(), byte)),
        };
        match (step, star) {
            (Some(len), _) => (p, t) = (p + len, t + 1),
            (None, Some((after, from))) if from < text.len() => {
                star = Some((after, from + 1));
                (p, t) = (after, from + 1);
            }
            (None, _) => return false,
        }
    }
}

/// How long the beginning of `pattern` is that stands for one byte, if it stands for this one.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [b'?', ..] => Some(1),
        [b'\\', escaped, ..] => (*escaped == byte).then_some(2),
        [b'[', set @ ..] => {
            let (negated, first) = if set.first() == Some(&b'^') { (true, 1) } else { (false, 0) };
            let (mut at, mut found) = (first, false);
            loop {
                match set.get(at..).unwrap_or_default() {
                    [] => break,
                    [b']', ..] if at > first => {
                        at += 1;
                        break;
                    }
                    [b'\\', escaped, ..] => {
                        found |= *escaped == byte;
                        at += 2;
                    }
                    [low, b'-', high, ..] if *high != b']' => {
                        found |= (*low.min(high)..=*low.max(high)).contains(&byte);
                        at += 3;
                    }
                    [other, ..] => {
                        found |= *other == byte;
                        at += 1;
                    }
                }
            }
            (found != negated).then_some(1 + at)
        }
        [other, ..] => (*other == byte).then_some(1),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_are_redis_s() {
        for (pattern, yes, no) in [
            ("*", &["", "a", "key:1"][..], &[][..]),
            ("key:*", &["key:", "key:12"], &["key", "akey:1"]),
            ("h?llo", &["hello", "hallo"], &["hllo", "heello"]),
            ("h[ae]llo", &["hello", "hallo"], &["hillo", "h[ae]llo"]),
            ("h[^e]llo", &["hallo"], &["hello", "hllo"]),
            ("[a-c]*[0-9]", &["a1", "cxx9"], &["d1", "a"]),
            ("a\\*b", &["a*b"], &["axb"]),
            ("*a*b*c", &["abc", "xaxbxc", "aabbcc"], &["acb", "ab"]),
            ("", &[""], &["a"]),
        ] {
            assert!(yes.iter().all(|text| matches(pattern.as_bytes(), text.as_bytes())), "{pattern}");
            assert!(!no.iter().any(|text| matches(pattern.as_bytes(), text.as_bytes())), "{pattern}");
        }
        // Many stars, and no match.
        let (pattern, text) = ("a*".repeat(50) + "b", "a".repeat(5000));
        assert!(!matches(pattern.as_bytes(), text.as_bytes()));
        // Unfinished sets are what they can be.
        assert!(matches(b"[ab", b"a") && !matches(b"[ab", b"c") && !matches(b"\\", b"a"));
    }
}

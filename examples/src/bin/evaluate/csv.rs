//! Comma-separated values, as RFC 4180 has them: fields may be quoted, and then hold commas, line breaks and doubled quotes.

/// The records, each with the line on which it begins, from 1.
pub(crate) fn parse(text: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let mut records = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while !rest.is_empty() {
        let begins = line;
        let mut fields = Vec::new();
        loop {
            let (field, after) = match rest.strip_prefix('"') {
                Some(quoted) => unquote(quoted).ok_or(format!("line {begins}: a quote is not closed"))?,
                None => {
                    let (field, after) = rest.split_at(rest.find([',', '\r', '\n']).unwrap_or(rest.len()));
                    (field.to_owned(), after)
                }
            };
            line += rest[..rest.len() - after.len()].matches('\n').count();
            fields.push(field);
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = after.trim_start_matches('\r');
                    break;
                }
            }
        }
        rest = match rest.strip_prefix('\n') {
            None if !rest.is_empty() => return Err(format!("line {line}: text behind a closing quote")),
            next => next.unwrap_or_default(),
        };
        line += 1;
        if fields.iter().any(|field| !field.is_empty()) {
            records.push((begins, fields));
        }
    }
    Ok(records)
}

/// What stands before the closing quote, and what behind it.
fn unquote(quoted: &str) -> Option<(String, &str)> {
    let mut field = String::new();
    let mut rest = quoted;
    loop {
        let (part, after) = rest.split_once('"')?;
        field.push_str(part);
        match after.strip_prefix('"') {
            Some(next) => {
                field.push('"');
                rest = next;
            }
            None => return Some((field, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_and_errors_have_their_line() {
        let text = "a,b,c\r\n1,\"x, \"\"y\"\"\n z\",\n\n\"\",é,3";
        let expected =
            [(1, vec!["a", "b", "c"]), (2, vec!["1", "x, \"y\"\n z", ""]), (5, vec!["", "é", "3"])];
        let found = parse(text).expect("well formed");
        let found: Vec<_> = found
            .iter()
            .map(|(line, fields)| (*line, fields.iter().map(|field| &**field).collect()))
            .collect();
        assert_eq!(found, expected);
        assert_eq!(parse("a\nb,\"c"), Err("line 2: a quote is not closed".to_owned()));
        assert_eq!(parse("\"a\nb\"c"), Err("line 2: text behind a closing quote".to_owned()));
    }
}

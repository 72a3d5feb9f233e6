//! Comma-separated values, as RFC 4180 has them: fields may be quoted, and then hold commas, line breaks and doubled quotes. Lines may end as any
//! system ends them.

/// The longest first.
const LINE_ENDS: [&str; 3] = ["\r\n", "\n", "\r"];

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
            line += n_line_ends(&rest[..rest.len() - after.len()]);
            fields.push(field);
            match after.strip_prefix(',') {
                Some(next) => rest = next,
                None => {
                    rest = after;
                    break;
                }
            }
        }
        rest = match LINE_ENDS.iter().find_map(|end| rest.strip_prefix(end)) {
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

fn n_line_ends(text: &str) -> usize {
    text.replace(LINE_ENDS[0], "\n").matches(['\r', '\n']).count()
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
        // A file of the old Mac's has the same records.
        assert_eq!(parse("a,b\r\r\"c\rd\",e\r"), parse("a,b\n\n\"c\rd\",e\n"));
        assert_eq!(parse("a\r\"b\r\nc\"\rd,\"e"), Err("line 4: a quote is not closed".to_owned()));
        assert_eq!(parse("a\nb,\"c"), Err("line 2: a quote is not closed".to_owned()));
        assert_eq!(parse("\"a\nb\"c"), Err("line 2: text behind a closing quote".to_owned()));
    }
}

//! What a line means: a message, or a command.

/// A line, read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Line<'a> {
    Message(&'a str),
    Help,
    /// Show the system prompt, or set it.
    System(Option<&'a str>),
    /// No system prompt.
    NoSystem,
    Reset,
    Undo,
    Save(&'a str),
    Load(&'a str),
    Context,
    Quit,
    /// A command without what it needs.
    Incomplete(&'static str),
    Unknown(&'a str),
}

pub(crate) const HELP: &str = "\
/system TEXT  set the system prompt (/system shows it, /system none takes it away)
/reset        forget the conversation, but not the system prompt
/undo         take the last message and its answer back
/save FILE    save the conversation as JSON
/load FILE    go on with a conversation that was saved
/context      how many tokens of the context are used
/quit         end (so does Ctrl-D)
Ctrl-C stops an answer. A line that ends in \\ goes on in the next; one that begins with // is a message.";

/// A slash begins a command, two a message that begins with one.
pub(crate) fn read(line: &str) -> Line<'_> {
    let Some(command) = line.trim_start().strip_prefix('/') else { return Line::Message(line) };
    if command.starts_with('/') {
        return Line::Message(command);
    }
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = Some(rest.trim()).filter(|rest| !rest.is_empty());
    match (name, rest) {
        ("help" | "h" | "?", _) => Line::Help,
        ("system", Some("none")) => Line::NoSystem,
        ("system", text) => Line::System(text),
        ("reset", _) => Line::Reset,
        ("undo", _) => Line::Undo,
        ("save", Some(file)) => Line::Save(file),
        ("save", None) => Line::Incomplete("/save FILE"),
        ("load", Some(file)) => Line::Load(file),
        ("load", None) => Line::Incomplete("/load FILE"),
        ("context", _) => Line::Context,
        ("quit" | "exit" | "q", _) => Line::Quit,
        _ => Line::Unknown(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        for (line, expected) in [
            ("hello", Line::Message("hello")),
            ("1/2", Line::Message("1/2")),
            ("//etc is a folder", Line::Message("/etc is a folder")),
            ("/system", Line::System(None)),
            (" /system  Be brief ", Line::System(Some("Be brief"))),
            ("/system none", Line::NoSystem),
            ("/save a b.json", Line::Save("a b.json")),
            ("/load", Line::Incomplete("/load FILE")),
            ("/exit", Line::Quit),
            ("/", Line::Unknown("")),
            ("/Reset", Line::Unknown("Reset")),
        ] {
            assert_eq!(read(line), expected, "{line}");
        }
    }
}

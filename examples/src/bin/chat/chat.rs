//! The conversation, and what the commands do to it.

use std::fs;
use std::io::{self, Write};

use examples::Outcome;
use llama_core::{ChatOptions, ContextOptions, Error, Llama, Session};

use crate::answer::answer;
use crate::command::{self, Line};

pub(crate) struct Chat {
    llama: Llama,
    options: ChatOptions,
    context: ContextOptions,
    session: Session,
}

impl Chat {
    pub(crate) fn new(
        llama: Llama,
        system: Option<&str>,
        options: ChatOptions,
        context: ContextOptions,
    ) -> Self {
        let session = llama.session(system).with_options(options.clone()).with_context(context.clone());
        Self { llama, options, context, session }
    }

    /// Does what a line asks for. Says whether to go on.
    pub(crate) fn line(&mut self, line: &str) -> Result<bool, Box<dyn std::error::Error>> {
        match command::read(line) {
            Line::Message(message) => self.message(message)?,
            Line::Help => say(command::HELP)?,
            Line::System(None) => match self.session.conversation().system() {
                Some(system) => say(system)?,
                None => say("There is no system prompt.")?,
            },
            Line::System(Some(text)) => self.system(Some(text.to_owned()))?,
            Line::NoSystem => self.system(None)?,
            Line::Reset => {
                self.session.reset();
                say("The conversation begins anew.")?;
            }
            Line::Undo => match self.session.undo() {
                Some((message, _)) => say(&format!("Taken back: {message}"))?,
                None => say("There is nothing to take back.")?,
            },
            Line::Save(file) => match self.save(file) {
                Ok(()) => say(&format!("Saved {} to {file}.", turns(self.n_turns())))?,
                Err(error) => complain(&format!("{file} could not be written: {error}"))?,
            },
            Line::Load(file) => self.load(file)?,
            Line::Context => self.show_context()?,
            Line::Quit => return Ok(false),
            Line::Incomplete(usage) => complain(&format!("say what: {usage}"))?,
            Line::Unknown(name) => complain(&format!(
                "there is no command /{name}: /help lists them, and a message that begins with a slash needs two"
            ))?,
        }
        Ok(true)
    }

    fn message(&mut self, message: &str) -> Outcome {
        match answer(&mut self.session, message) {
            Err(error) if error.is_context_overflow() || matches!(error, Error::Summary(_)) => {
                complain(&error.to_string())
            }
            answered => Ok(answered?),
        }
    }

    fn system(&mut self, system: Option<String>) -> Outcome {
        self.session.set_system(system);
        match self.n_turns() {
            0 => say("So be it."),
            _ => say("So be it. The conversation goes on; /reset begins anew."),
        }
    }

    /// What was saved there before is lost only when all of the new is written.
    fn save(&self, file: &str) -> io::Result<()> {
        let part = format!("{file}.part");
        fs::write(&part, self.session.to_json() + "\n")?;
        fs::rename(part, file)
    }

    fn load(&mut self, file: &str) -> Outcome {
        let json = match fs::read_to_string(file) {
            Ok(json) => json,
            Err(error) => return complain(&format!("{file} could not be read: {error}")),
        };
        match self.llama.session_from_json(&json) {
            Ok(session) => {
                self.session = session.with_options(self.options.clone()).with_context(self.context.clone());
                say(&format!("Loaded {} from {file}.", turns(self.n_turns())))
            }
            Err(error) => complain(&format!("{file}: {error}")),
        }
    }

    fn show_context(&self) -> Outcome {
        match self.session.budget() {
            Ok(budget) => say(&format!(
                "{} of {} tokens are used by {}, {} are reserved for the answer, {} are left.",
                budget.prompt,
                budget.limit,
                turns(self.n_turns()),
                budget.reserved,
                budget.left
            )),
            Err(error) => complain(&error.to_string()),
        }
    }

    fn n_turns(&self) -> usize {
        self.session.conversation().turns().len()
    }
}

fn say(text: &str) -> Outcome {
    Ok(writeln!(io::stdout(), "{text}\n")?)
}

fn complain(text: &str) -> Outcome {
    Ok(writeln!(io::stderr(), "({text})\n")?)
}

fn turns(n: usize) -> String {
    format!("{n} turn{}", if n == 1 { "" } else { "s" })
}

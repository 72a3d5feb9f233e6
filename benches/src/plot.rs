//! The ratios of a record as a picture: bars of tokens a second over another engine's, in SVG, which needs nothing to be drawn.
//!
//! Of each question (model, threads, test) the last comparison on a processor counts, by the medians of its rounds.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::compare::median;

/// Ours over theirs.
#[derive(Debug, Clone, PartialEq)]
pub struct Ratio {
    /// Shape and type.
    pub model: String,
    /// The threads.
    pub threads: usize,
    /// `pp512`, `tg64`.
    pub test: String,
    /// How many times as many tokens a second.
    pub ratio: f64,
}

/// What is wrong with a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A column that is not there.
    #[error("the record has no column {0:?}")]
    NoColumn(&'static str),
    /// A field that is no number.
    #[error("line {line}: {column} is {found:?}, expected a number")]
    Number {
        /// The line, from 1.
        line: usize,
        /// The column.
        column: &'static str,
        /// What it holds.
        found: String,
    },
    /// Nothing to draw.
    #[error("the record compares {ours:?} with {theirs:?} nowhere on {processor:?}")]
    Nothing {
        /// The processor, as the record has it.
        processor: String,
        /// Whose ratios are wanted.
        ours: String,
        /// To what.
        theirs: String,
    },
}

/// The last ratio of each question on a processor, in the order of the record, those of a model on as many threads side by side.
///
/// # Errors
///
/// [`RecordError`].
pub fn ratios(csv: &str, processor: &str, ours: &str, theirs: &str) -> Result<Vec<Ratio>, RecordError> {
    let mut lines = csv.lines();
    let header: Vec<_> = lines.next().unwrap_or_default().split(',').collect();
    let column = |name: &'static str| {
        header.iter().position(|&column| column == name).ok_or(RecordError::NoColumn(name))
    };
    let (date, cpu, model, threads) = (column("date")?, column("cpu")?, column("model")?, column("threads")?);
    let (test, engine, rate) = (column("test")?, column("engine")?, column("tokens_per_s")?);

    type Question = (String, usize, String);
    let mut order: Vec<Question> = Vec::new();
    // By question: the date, and the rates of either engine.
    let mut last: BTreeMap<Question, (String, [Vec<f64>; 2])> = BTreeMap::new();
    for (i, line) in lines.enumerate() {
        let fields: Vec<_> = line.split(',').collect();
        let field = |column: usize| fields.get(column).copied().unwrap_or_default().to_owned();
        let wrong = |column, found: String| RecordError::Number { line: i + 2, column, found };
        let which = match field(engine) {
            _ if field(cpu) != processor => continue,
            engine if engine == ours => 0,
            engine if engine == theirs => 1,
            _ => continue,
        };
        let n_threads = field(threads).parse().map_err(|_| wrong("threads", field(threads)))?;
        let tokens: f64 = field(rate).parse().map_err(|_| wrong("tokens_per_s", field(rate)))?;
        let question = (field(model), n_threads, field(test));
        if !order.contains(&question) {
            order.push(question.clone());
        }
        let entry = last.entry(question).or_default();
        if entry.0 != field(date) {
            *entry = (field(date), Default::default());
        }
        entry.1[which].push(tokens);
    }
    let groups: Vec<_> = order.iter().map(|(model, threads, _)| (model.clone(), *threads)).collect();
    order.sort_by_key(|(model, threads, _)| groups.iter().position(|it| (&it.0, it.1) == (model, *threads)));
    let ratio = |question: Question| {
        let (_, rates) = last.get(&question)?;
        let [ours, theirs] = rates.each_ref().map(|rates| median(rates.iter().copied()));
        let (model, threads, test) = question;
        Some(Ratio { model, threads, test, ratio: ours? / theirs? })
    };
    let ratios: Vec<_> = order.into_iter().filter_map(ratio).collect();
    if ratios.is_empty() {
        let [processor, ours, theirs] = [processor, ours, theirs].map(str::to_owned);
        return Err(RecordError::Nothing { processor, ours, theirs });
    }
    Ok(ratios)
}

/// A bar for each ratio, grouped by model and threads, and a line where both are alike.
#[must_use]
pub fn svg(ratios: &[Ratio], title: &str, processor: &str) -> String {
    const LEFT: f64 = 190.0; // the longest name, in a wide font
    const WIDTH: f64 = 480.0;
    const BAR: f64 = 16.0;
    const COLOURS: [&str; 6] = ["#3b6fb6", "#e08a2e", "#5a9e5a", "#a65aa6", "#b65a5a", "#7a7a7a"];
    let tests = ratios.iter().fold(Vec::new(), |mut tests: Vec<&str>, ratio| {
        if !tests.contains(&&*ratio.test) {
            tests.push(&ratio.test);
        }
        tests
    });
    let colour = |test: &str| COLOURS[tests.iter().position(|&it| it == test).unwrap_or(0) % COLOURS.len()];
    // A quarter above the longest bar, for its number.
    let most = ratios.iter().map(|ratio| ratio.ratio).fold(1.0, f64::max) * 1.15;
    let x = |ratio: f64| LEFT + WIDTH * ratio / most;

    let mut body = String::new();
    let mut y = 66.0;
    let mut group = None;
    for ratio in ratios {
        if group != Some((&ratio.model, ratio.threads)) {
            if group.is_some() {
                y += 10.0;
            }
            group = Some((&ratio.model, ratio.threads));
            let unit = if ratio.threads == 1 { "thread" } else { "threads" };
            let label = escaped(&format!("{}, {} {unit}", ratio.model, ratio.threads));
            let _ = writeln!(
                body,
                r#"<text x="{}" y="{:.1}" text-anchor="end">{label}</text>"#,
                LEFT - 8.0,
                y + 12.5
            );
        }
        let (fill, end) = (colour(&ratio.test), x(ratio.ratio));
        let _ = writeln!(
            body,
            r#"<rect x="{LEFT}" y="{y:.1}" width="{:.1}" height="{}" fill="{fill}"/><text x="{:.1}" y="{:.1}">{:.2} ×</text>"#,
            end - LEFT,
            BAR - 2.0,
            end + 4.0,
            y + 11.5,
            ratio.ratio
        );
        y += BAR;
    }
    let mut legend = String::new();
    for (i, test) in tests.iter().enumerate() {
        let at = LEFT + 110.0 * i as f64;
        let _ = writeln!(
            legend,
            r#"<rect x="{at}" y="36" width="12" height="12" fill="{}"/><text x="{}" y="46.5">{}</text>"#,
            colour(test),
            at + 17.0,
            escaped(test)
        );
    }
    let (height, one) = (y + 34.0, x(1.0));
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{height:.0}" viewBox="0 0 700 {height:.0}" font-family="sans-serif" font-size="12">
<rect width="700" height="{height:.0}" fill="#ffffff"/>
<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{title}</text>
{legend}{body}<line x1="{one:.1}" y1="58" x2="{one:.1}" y2="{y:.1}" stroke="#222222" stroke-dasharray="4 3"/>
<text x="{LEFT}" y="{:.1}" fill="#555555">{}</text>
</svg>
"##,
        y + 20.0,
        escaped(processor),
        title = escaped(title),
    ) // String's `write!` never fails
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "date,commit,cpu,model,threads,test,round,engine,tokens_per_s\n\
        d1,c,A & B,m q4_0,2,pp512,0,ours,1\n\
        d1,c,A & B,m q4_0,2,pp512,0,theirs,9\n\
        d2,c,A & B,m q4_0,2,pp512,0,ours,30\n\
        d2,c,A & B,m q4_0,2,pp512,0,theirs,10\n\
        d2,c,A & B,m q4_0,2,pp512,1,ours,20\n\
        d2,c,A & B,m q4_0,2,pp512,1,theirs,12\n\
        d2,c,A & B,m q4_0,2,tg64,0,ours,5\n\
        d2,c,A & B,m q4_0,2,tg64,0,theirs,4\n\
        d2,c,A & B,m q4_0,2,tg64,0,others,1\n\
        d3,c,C,m q4_0,2,tg64,0,ours,7\n\
        d3,c,C,m q4_0,2,tg64,0,theirs,7\n";

    #[test]
    fn the_last_comparison_counts_by_its_medians() {
        let found = ratios(RECORD, "A & B", "ours", "theirs").unwrap();
        let found: Vec<_> = found.iter().map(|it| (&*it.test, it.ratio)).collect();
        assert_eq!(found, [("pp512", 30.0 / 12.0), ("tg64", 5.0 / 4.0)]);
    }

    #[test]
    fn a_record_that_cannot_be_drawn_says_why() {
        assert_eq!(ratios("date,cpu", "c", "a", "b"), Err(RecordError::NoColumn("model")));
        let nothing = RecordError::Nothing {
            processor: "D".to_owned(),
            ours: "ours".to_owned(),
            theirs: "theirs".to_owned(),
        };
        assert_eq!(ratios(RECORD, "D", "ours", "theirs"), Err(nothing));
        let broken = RECORD.replace(",30\n", ",x\n");
        let wrong = RecordError::Number { line: 4, column: "tokens_per_s", found: "x".to_owned() };
        assert_eq!(ratios(&broken, "A & B", "ours", "theirs"), Err(wrong));
    }

    #[test]
    fn the_picture_has_a_bar_for_each_ratio() {
        let picture = svg(&ratios(RECORD, "A & B", "ours", "theirs").unwrap(), "a < b", "A & B");
        assert!(picture.contains("2.50 ×") && picture.contains("1.25 ×"), "{picture}");
        assert!(picture.contains("a &lt; b") && picture.contains("A &amp; B"), "{picture}");
        assert_eq!(picture.matches("<rect").count(), 1 + 2 + 2, "{picture}");
    }
}

//! Measures the candle backend's marks and appends the rounds to `benches/record/candle.csv`.

use std::path::Path;

use benches::marks::Marks;
use benches::{Error, record};

fn main() -> Result<(), Error> {
    let marks = Marks::measure(9)?;
    #[allow(clippy::print_stdout, reason = "this program's output")]
    {
        println!("{marks}");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("record/candle.csv");
    record::append(&path, &marks)
}

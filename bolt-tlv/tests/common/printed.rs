//! Test vectors in two places: a JSON file for programs, and a block of blip-draft.md for people. Both are made from
//! what our own code says; a test compares them with it, and another, which is ignored, writes them.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)]

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

/// The vectors of one test.
pub struct Printed {
    /// The JSON file, from the repository's root, and what is in it.
    pub file: Option<(&'static str, Value)>,
    /// The name of the block in the draft.
    pub block: &'static str,
    /// What is in that.
    pub text: String,
}

fn path(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}

/// The draft as it is.
pub fn draft() -> String {
    fs::read_to_string(path("blip-draft.md")).unwrap()
}

impl Printed {
    /// The draft before the block, the block, and what follows.
    fn split(&self, draft: &str) -> (String, String, String) {
        let (begin, end) =
            (format!("<!-- begin {} -->\n", self.block), format!("<!-- end {} -->\n", self.block));
        let (before, rest) = draft.split_once(&begin).expect("the block's begin in blip-draft.md");
        let (block, after) = rest.split_once(&end).expect("the block's end in blip-draft.md");
        (format!("{before}{begin}"), block.to_owned(), format!("{end}{after}"))
    }

    /// Both places say what the code says.
    pub fn check(&self) {
        if let Some((file, json)) = &self.file {
            assert_eq!(
                fs::read_to_string(path(file)).unwrap(),
                format!("{json:#}\n"),
                "{file}: run `make vectors`"
            );
        }
        let (_, block, _) = self.split(&draft());
        assert_eq!(block, self.text, "blip-draft.md, {}: run `make vectors`", self.block);
    }

    /// Writes both.
    pub fn write(&self) {
        if let Some((file, json)) = &self.file {
            fs::write(path(file), format!("{json:#}\n")).unwrap();
        }
        let (before, _, after) = self.split(&draft());
        fs::write(path("blip-draft.md"), format!("{before}{}{after}", self.text)).unwrap();
    }
}

/// A vector as the draft prints it; what is said of it may be empty.
pub fn line(name: &str, said: &str, hex: &str) -> String {
    let said = if said.is_empty() { String::new() } else { format!(", {said}") };
    format!("- **{name}**{said}:\n  `{hex}`\n")
}

/// A JSON value in few words: hex of one byte again and again as `aa*32`.
pub fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => repeated(text).unwrap_or_else(|| text.clone()),
        Value::Array(items) => format!("[{}]", items.iter().map(brief).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| format!("{name} {}", brief(value)));
            format!("({})", fields.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn repeated(hex: &str) -> Option<String> {
    let byte = hex.get(..2)?;
    let count = hex.len() / 2;
    (count > 4 && byte.repeat(count) == hex).then(|| format!("{byte}*{count}"))
}

//! The catalogue of settings as a file to start from, and the effective
//! configuration as a file to look at.

use std::fmt;
use std::path::Path;

use super::Effective;
use super::settings::{Fallback, SETTINGS, Setting, Value};

/// The width of the comments.
const COLUMNS: usize = 79;

const HEAD: &str = "\
A node of Domicile: `domiciled run --config FILE`.

A setting may also be given as a variable of the environment or as a flag: \
`raft.heartbeat_ms` as DOMICILE_RAFT_HEARTBEAT_MS or `--set raft.heartbeat_ms=100`. Flags win over \
the environment, the environment over this file. What is commented out shows the default, or an \
example where there is none.";

/// The commented sample configuration, as it stands in `deploy/`.
pub fn sample() -> String {
    let mut out = String::new();
    for paragraph in HEAD.split("\n\n") {
        if !out.is_empty() {
            out.push_str("#\n");
        }
        push_comment(&mut out, paragraph);
    }
    let mut section = "";
    for setting in SETTINGS {
        let (its_section, name) = setting.section_and_name();
        out.push('\n');
        if its_section != section {
            section = its_section;
            out.push_str(&format!("[{section}]\n\n"));
        }
        push_comment(&mut out, setting.doc);
        push_comment(&mut out, &rule_of(setting));
        let (mark, value) = line_of(setting);
        out.push_str(&format!("{mark}{name} = {value}\n"));
    }
    out
}

/// What a setting may be and what it is by default.
fn rule_of(setting: &Setting) -> String {
    let default = match setting.default {
        Fallback::Required(_) => "no default, it must be set".to_owned(),
        Fallback::Value(value) => format!("default {}", Value::from(value)),
        Fallback::Of(key) => format!("default: that of `{key}`"),
        Fallback::Unset(_) | Fallback::Example(_) => "default: none".to_owned(),
    };
    let kind = setting.kind.to_string();
    let mut letters = kind.chars();
    let first = letters.next().map(|letter| letter.to_ascii_uppercase());
    let kind: String = first.into_iter().chain(letters).collect();
    format!("{kind}; {default}.")
}

/// Whether the line is commented out, and its value.
fn line_of(setting: &Setting) -> (&'static str, Value) {
    match setting.default {
        Fallback::Required(value) | Fallback::Example(value) => ("", value.into()),
        Fallback::Value(value) | Fallback::Unset(value) => ("# ", value.into()),
        Fallback::Of(key) => {
            let other = Setting::find(key).expect("the catalogue names its own settings");
            ("# ", line_of(other).1)
        }
    }
}

fn push_comment(out: &mut String, text: &str) {
    let mut width = 0;
    for word in text.split_whitespace() {
        let next = width + 1 + word.chars().count();
        if width > 0 && next <= COLUMNS {
            out.push(' ');
            width = next;
        } else {
            if width > 0 {
                out.push('\n');
            }
            out.push_str("# ");
            width = 2 + word.chars().count();
        }
        out.push_str(word);
    }
    out.push('\n');
}

/// Writes settings as a file, each line with its source behind it.
/// The data directory is shown in full, too.
pub(super) fn write_effective(
    f: &mut fmt::Formatter<'_>,
    settings: &[Effective],
    data_dir: &Path,
) -> fmt::Result {
    let mut section = "";
    for setting in settings {
        let (its_section, name) = setting.key.split_once('.').unwrap_or(("", setting.key));
        if its_section != section {
            section = its_section;
            write!(f, "\n[{section}]\n")?;
        }
        let line = format!("{name} = {}", setting.value);
        write!(f, "{line:<40} # {}", setting.source)?;
        if setting.key == "data_dir" {
            write!(f, ": {}", data_dir.display())?;
        }
        writeln!(f)?;
    }
    Ok(())
}

//! The layers: file, environment and flags over the defaults.
//!
//! A mistake in one place does not hide the others: they are gathered, and
//! reported together with the place of each.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;

use domicile_proto::address::RegionName;
use domicile_proto::identity::SpiffeId;
use toml::de::{DeTable, DeValue};

use super::settings::{self, Fallback, SETTINGS, Setting, Value, nearest};
use super::{Broken, Effective, Flags, Source, refusal};
use crate::error::{Error, Result};

/// The largest configuration file, in bytes: a hundred times the sample.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The variable that names the file.
const FILE_VARIABLE: &str = "DOMICILE_CONFIG";

/// The variables of the other programs of Domicile, which the server leaves
/// alone: the command line is often used where a node is started.
const OTHER_PROGRAMS: [&str; 2] = ["DOMICILE_ENDPOINTS", "DOMICILE_CLIENT_TLS_DIR"];

/// What begins the variables of the gate, which are no settings either.
const GATE: &str = "DOMICILE_CI_";

/// Values by setting, with who set them.
pub(super) struct Values(BTreeMap<&'static str, (Value, Source)>);

/// What is wrong, and where.
struct Mistake {
    place: Source,
    message: String,
}

impl Values {
    /// The defaults of all settings that have one of their own.
    pub(super) fn defaults() -> Self {
        let mut values = BTreeMap::new();
        for setting in SETTINGS {
            if let Fallback::Value(value) = setting.default {
                values.insert(setting.key, (value.into(), Source::Default));
            }
        }
        Values(values)
    }

    /// Reads all layers, the strongest last.
    pub(super) fn read(
        file: Option<(String, String)>,
        variables: &[(String, String)],
        flags: &Flags,
    ) -> Result<Self> {
        let mut values = Values::defaults();
        let mut mistakes = Vec::new();
        if let Some((path, text)) = &file {
            values.read_toml(path, text, &mut mistakes);
        }
        values.read_variables(variables, &mut mistakes);
        values.read_flags(flags, &mut mistakes);
        values.fill_up(&mut mistakes);
        if !mistakes.is_empty() {
            return Err(refusal(mistakes.iter().map(Mistake::to_string)));
        }
        Ok(values)
    }

    fn read_toml(&mut self, path: &str, text: &str, mistakes: &mut Vec<Mistake>) {
        let (table, errors) = DeTable::parse_recoverable(text);
        let start = mistakes.len();
        for error in &errors {
            // Where the parser has no place, the file ends too early.
            let at = error.span().map_or(text.len(), |span| span.start);
            let message = error.message().to_owned();
            let place = place_in(path, text, at);
            mistakes.push(Mistake { place, message });
        }
        // Behind a mistake in the grammar, the rest may be misread.
        if errors.is_empty() {
            self.read_table(path, text, "", table.get_ref(), mistakes);
        }
        mistakes[start..].sort_by_key(|mistake| match mistake.place {
            Source::File { line, column, .. } => (line, column),
            _ => (0, 0),
        });
    }

    fn read_table(
        &mut self,
        path: &str,
        text: &str,
        section: &str,
        table: &DeTable<'_>,
        mistakes: &mut Vec<Mistake>,
    ) {
        for (name, value) in table.iter() {
            let key = match section {
                "" => name.get_ref().to_string(),
                _ => format!("{section}.{}", name.get_ref()),
            };
            let place = place_in(path, text, name.span().start);
            let message = match (Setting::find(&key), value.get_ref()) {
                (Some(setting), value) => match setting.kind.read_toml(value) {
                    Ok(value) => {
                        self.0.insert(setting.key, (value, place));
                        continue;
                    }
                    Err(why) => format!("`{key}`: {why}"),
                },
                (None, DeValue::Table(inner)) if is_section(&key) => {
                    self.read_table(path, text, &key, inner, mistakes);
                    continue;
                }
                (None, _) if is_section(&key) => format!("`{key}` is a section: write `[{key}]`"),
                (None, _) => unknown(&key),
            };
            mistakes.push(Mistake { place, message });
        }
    }

    fn read_variables(&mut self, variables: &[(String, String)], mistakes: &mut Vec<Mistake>) {
        for (name, text) in variables {
            if name == FILE_VARIABLE {
                continue;
            }
            let place = Source::Environment(name.clone());
            let setting = SETTINGS.iter().find(|setting| setting.variable() == *name);
            let message = match setting {
                Some(setting) => match setting.kind.read_text(text) {
                    Ok(value) => {
                        self.0.insert(setting.key, (value, place));
                        continue;
                    }
                    Err(why) => why,
                },
                None => unknown_variable(name),
            };
            mistakes.push(Mistake { place, message });
        }
    }

    fn read_flags(&mut self, flags: &Flags, mistakes: &mut Vec<Mistake>) {
        for pair in &flags.set {
            let (key, text) = match pair.split_once('=') {
                Some((key, text)) => (key.trim(), text.trim()),
                None => {
                    let place = Source::Flag("--set".to_owned());
                    let message = format!("`{pair}` is not KEY=VALUE");
                    mistakes.push(Mistake { place, message });
                    continue;
                }
            };
            let place = Source::Flag(format!("--set {key}"));
            match Setting::find(key) {
                Some(setting) => self.read_flag(setting, place, text, mistakes),
                None => {
                    let message = unknown(key);
                    mistakes.push(Mistake { place, message });
                }
            }
        }
        for (flag, key, text) in flags.named() {
            let setting = Setting::find(key).expect("a flag of its own has a setting");
            self.read_flag(setting, Source::Flag(flag.to_owned()), text, mistakes);
        }
    }

    fn read_flag(
        &mut self,
        setting: &Setting,
        place: Source,
        text: &str,
        mistakes: &mut Vec<Mistake>,
    ) {
        match setting.kind.read_text(text) {
            Ok(value) => {
                self.0.insert(setting.key, (value, place));
            }
            Err(message) => mistakes.push(Mistake { place, message }),
        }
    }

    /// Fills in what follows from other settings, and finds what is missing.
    fn fill_up(&mut self, mistakes: &mut Vec<Mistake>) {
        // A setting that was set wrongly is not missing too.
        let complete = mistakes.is_empty();
        for setting in SETTINGS {
            if self.0.contains_key(setting.key) {
                continue;
            }
            match setting.default {
                Fallback::Of(other) => {
                    if let Some((value, _)) = self.0.get(other).cloned() {
                        self.0.insert(setting.key, (value, Source::Default));
                    }
                }
                Fallback::Required(_) if complete => mistakes.push(Mistake {
                    place: Source::Default,
                    message: format!(
                        "`{}` is not set and has no default: set it in the file, as {}, or with \
                         --{}",
                        setting.key,
                        setting.variable(),
                        setting.key.replace('_', "-")
                    ),
                }),
                _ => {}
            }
        }
    }

    /// A broken rule with who set what it speaks of.
    pub(super) fn explain(&self, rule: &Broken) -> String {
        let mut message = rule.message.clone();
        for key in &rule.keys {
            if let Some((_, source)) = self.0.get(key)
                && *source != Source::Default
            {
                message.push_str(&format!(" [`{key}`: {source}]"));
            }
        }
        message
    }

    /// Every setting that has a value.
    pub(super) fn effective(&self) -> Vec<Effective> {
        let effective = |setting: &Setting| {
            let (value, source) = self.0.get(setting.key)?;
            Some(Effective {
                key: setting.key,
                value: value.to_string(),
                source: source.clone(),
            })
        };
        SETTINGS.iter().filter_map(effective).collect()
    }

    /// A number that has a default or is required.
    pub(super) fn count(&self, key: &str) -> u64 {
        match self.0.get(key) {
            Some((Value::Count(number), _)) => *number,
            _ => unreachable!("`{key}` is no number of the catalogue"),
        }
    }

    /// A switch.
    pub(super) fn switch(&self, key: &str) -> bool {
        match self.0.get(key) {
            Some((Value::Switch(on), _)) => *on,
            _ => unreachable!("`{key}` is no switch of the catalogue"),
        }
    }

    /// A text that has a default or is required.
    pub(super) fn text(&self, key: &str) -> &str {
        match self.0.get(key) {
            Some((Value::Text(text), _)) => text,
            _ => unreachable!("`{key}` is no text of the catalogue"),
        }
    }

    /// An address to listen on.
    pub(super) fn socket(&self, key: &str) -> Option<SocketAddr> {
        self.0.get(key)?;
        let socket = self.text(key).parse();
        Some(socket.expect("the setting's kind checked the address"))
    }

    /// A path, if it is set.
    pub(super) fn path(&self, key: &str) -> Option<PathBuf> {
        self.0.get(key)?;
        Some(PathBuf::from(self.text(key)))
    }

    /// Ids of workloads.
    pub(super) fn ids(&self, key: &str) -> Vec<SpiffeId> {
        if !self.0.contains_key(key) {
            return Vec::new();
        }
        settings::read_ids(self.text(key)).expect("the setting's kind checked it")
    }

    /// Sockets to listen on, each for callers of a region.
    pub(super) fn callers(&self, key: &str) -> Vec<(RegionName, SocketAddr)> {
        if !self.0.contains_key(key) {
            return Vec::new();
        }
        settings::read_callers(self.text(key)).expect("the setting's kind checked it")
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Source::Default => f.write_str(&self.message),
            _ => write!(f, "{}: {}", self.place, self.message),
        }
    }
}

/// Whether a name is that of a section.
fn is_section(name: &str) -> bool {
    SETTINGS
        .iter()
        .any(|setting| setting.section_and_name().0 == name && !name.is_empty())
}

/// Says that there is no such setting, and which one may be meant.
fn unknown(typed: &str) -> String {
    let plain = typed.replace('-', "_");
    let keys = SETTINGS.iter().map(|setting| setting.key);
    let sections = SETTINGS.iter().map(|setting| setting.section_and_name().0);
    // The right key in the wrong section is more likely than a slip.
    let last = plain.rsplit('.').next().unwrap_or(&plain);
    let misplaced = SETTINGS
        .iter()
        .find(|setting| setting.section_and_name().1 == last)
        .map(|setting| setting.key);
    match misplaced.or_else(|| nearest(&plain, keys.chain(sections))) {
        Some(key) => format!("there is no setting `{typed}`; did you mean `{key}`?"),
        None => format!("there is no setting `{typed}`"),
    }
}

/// The same for a variable of the environment, whose place names it already.
fn unknown_variable(typed: &str) -> String {
    let variables: Vec<_> = SETTINGS.iter().map(Setting::variable).collect();
    match nearest(typed, variables.iter().map(String::as_str)) {
        Some(name) => format!("there is no such setting; did you mean `{name}`?"),
        None => "there is no such setting".to_owned(),
    }
}

/// The place of a byte of the file.
fn place_in(path: &str, text: &str, at: usize) -> Source {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Source::File {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
    }
}

/// The variables that are meant for the server.
pub(super) fn domicile_variables(
    all: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (name, text) in all {
        let Ok(name) = name.into_string() else {
            continue;
        };
        if !name.starts_with("DOMICILE_") {
            continue;
        }
        let shown = text.to_string_lossy();
        let foreign = OTHER_PROGRAMS.contains(&name.as_str()) || name.starts_with(GATE);
        if foreign || is_service_link(&name, &shown) {
            continue;
        }
        let text = text.into_string().map_err(|_| {
            Error::invalid(format!("environment variable {name}: it is not UTF-8 text"))
        })?;
        variables.push((name, text));
    }
    variables.sort();
    Ok(variables)
}

/// Whether Kubernetes set the variable, as it does in every pod beside a
/// service whose name begins with `domicile`.
fn is_service_link(name: &str, text: &str) -> bool {
    let is_url = text.starts_with("tcp://") || text.starts_with("udp://");
    let port = name.split("_PORT_").nth(1);
    let numbered = port.is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || numbered
        || (name.ends_with("_PORT") && is_url)
}

/// Reads the file that a flag or the environment names.
pub(super) fn read_file(
    flags: &Flags,
    variables: &[(String, String)],
) -> Result<Option<(String, String)>> {
    let named = variables.iter().find(|(name, _)| name == FILE_VARIABLE);
    let path = match (&flags.config, named) {
        (Some(path), _) => path.clone(),
        (None, Some((_, path))) => path.into(),
        (None, None) => return Ok(None),
    };
    let shown = path.display().to_string();
    let unreadable = |why: std::io::Error| {
        Error::invalid(format!("the configuration file {shown} cannot be read")).caused_by(why)
    };
    let file = std::fs::File::open(&path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::invalid(format!(
            "the configuration file {shown} has more than {FILE_BYTES_MAX} bytes"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        Error::invalid(format!(
            "the configuration file {shown} is not UTF-8 text (byte {at})"
        ))
    })?;
    Ok(Some((shown, text)))
}

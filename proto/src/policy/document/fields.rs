//! Reads the fields of a table and the values that stand in them, whatever they mean.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use toml::Spanned;
use toml::de::DeValue;

use super::{Fields, Reader, TEXT_BYTES_MAX, asks};
use crate::address::PolicyVersion;
use crate::policy::problem::nearest;
use crate::policy::terms::{Choice, check_moment};
use crate::policy::unenforced::UNENFORCED;
use crate::policy::{Date, Unenforced};

/// Tables and fields, whatever they mean.
impl Reader<'_> {
    /// A field that must be there.
    pub(super) fn required<'t, 's, T>(
        &mut self,
        fields: &Fields<'t, 's>,
        field: &str,
        read: impl FnOnce(&mut Self, &'t Spanned<DeValue<'s>>) -> Option<T>,
    ) -> Option<T> {
        let Some(node) = fields.get(field) else {
            let what = &fields.what;
            self.problems
                .add(&fields.span, format!("{what} needs the field `{field}`"));
            return None;
        };
        read(self, node)
    }

    /// A field that may be there.
    pub(super) fn optional<'t, 's, T>(
        &mut self,
        fields: &Fields<'t, 's>,
        field: &str,
        read: impl FnOnce(&mut Self, &'t Spanned<DeValue<'s>>) -> Option<T>,
    ) -> Option<T> {
        read(self, fields.get(field)?)
    }

    /// The tables under `[path.NAME]`.
    pub(super) fn named<'t, 's, N: FromStr + Ord>(
        &mut self,
        node: &'t Spanned<DeValue<'s>>,
        what: &str,
        path: &str,
        known: &[&str],
    ) -> Vec<(N, Fields<'t, 's>)>
    where
        N::Err: fmt::Display,
    {
        let Some(tables) = node.get_ref().as_table() else {
            self.wrong_type(node, &format!("tables, `[{path}.NAME]`"));
            return Vec::new();
        };
        let mut named = Vec::new();
        for (key, node) in tables {
            let written: &str = key.get_ref();
            let name = match written.parse::<N>() {
                Ok(name) => name,
                Err(error) => {
                    self.problems.add(&key.span(), error.to_string());
                    continue;
                }
            };
            let Some(table) = node.get_ref().as_table() else {
                self.wrong_type(node, "a table");
                continue;
            };
            let fields = Fields {
                span: key.span(),
                what: format!("{what} `{written}`"),
                table,
            };
            self.check_fields(
                &fields,
                known,
                &format!("{path}.*."),
                &format!("{path}.{written}."),
            );
            named.push((name, fields));
        }
        named
    }

    /// A table without a name.
    pub(super) fn table<'t, 's>(
        &mut self,
        node: &'t Spanned<DeValue<'s>>,
        what: &str,
        known: &[&str],
    ) -> Option<Fields<'t, 's>> {
        let Some(table) = node.get_ref().as_table() else {
            self.wrong_type(node, "a table");
            return None;
        };
        let fields = Fields {
            span: node.span(),
            what: what.to_owned(),
            table,
        };
        self.check_unknown(&fields, known);
        Some(fields)
    }

    /// Refuses fields that are not known and notes those that are not enforced.
    pub(super) fn check_fields(
        &mut self,
        fields: &Fields<'_, '_>,
        known: &[&str],
        pattern: &str,
        path: &str,
    ) {
        self.check_unknown(fields, known);
        for rule in UNENFORCED {
            let Some(field) = rule.field.strip_prefix(pattern) else {
                continue;
            };
            let Some((key, node)) = fields.table.get_key_value(field) else {
                continue;
            };
            if !asks(node.get_ref(), rule.when) {
                continue;
            }
            let (line, column) = self.problems.position(&key.span());
            let field = format!("{path}{field}");
            self.unenforced.push(Unenforced {
                line,
                column,
                field,
                why: rule.why,
            });
        }
    }

    pub(super) fn check_unknown(&mut self, fields: &Fields<'_, '_>, known: &[&str]) {
        for key in fields.table.keys() {
            let written: &str = key.get_ref();
            if !known.contains(&written) {
                let message = format!("{} has no field `{written}`", fields.what);
                let meant = nearest(written, known.iter().copied());
                self.problems.add_meant(&key.span(), message, meant);
            }
        }
    }

    pub(super) fn wrong_type(&mut self, node: &Spanned<DeValue<'_>>, wanted: &str) {
        let found = node.get_ref().type_str();
        self.problems
            .add(&node.span(), format!("here stands {wanted}, not: {found}"));
    }
}

/// Values.
impl Reader<'_> {
    pub(super) fn text<'t>(&mut self, node: &'t Spanned<DeValue<'_>>) -> Option<&'t str> {
        let text = node.get_ref().as_str();
        if text.is_none() {
            self.wrong_type(node, "a string");
        }
        text
    }

    pub(super) fn parsed<T: FromStr>(&mut self, node: &Spanned<DeValue<'_>>) -> Option<T>
    where
        T::Err: fmt::Display,
    {
        match self.text(node)?.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problems.add(&node.span(), error.to_string());
                None
            }
        }
    }

    pub(super) fn choice<T: Choice>(&mut self, node: &Spanned<DeValue<'_>>) -> Option<T> {
        let text = self.text(node)?;
        let found = T::ALL.iter().find(|choice| choice.name() == text).copied();
        if found.is_none() {
            let names: Vec<_> = T::ALL.iter().map(|choice| choice.name()).collect();
            let message = format!("`{text}` is none of: {}", names.join(", "));
            self.problems
                .add_meant(&node.span(), message, nearest(text, names));
        }
        found
    }

    /// A list in which nothing stands twice.
    pub(super) fn set<T: FromStr + Ord>(
        &mut self,
        node: &Spanned<DeValue<'_>>,
    ) -> Option<BTreeSet<T>>
    where
        T::Err: fmt::Display,
    {
        let Some(items) = node.get_ref().as_array() else {
            self.wrong_type(node, "a list of strings");
            return None;
        };
        let mut set = BTreeSet::new();
        for item in items {
            if !set.insert(self.parsed(item)?) {
                self.problems
                    .add(&item.span(), "this stands in the list twice");
            }
        }
        Some(set)
    }

    /// A list as [`Self::set`], with something in it.
    pub(super) fn filled<T: FromStr + Ord>(
        &mut self,
        node: &Spanned<DeValue<'_>>,
    ) -> Option<BTreeSet<T>>
    where
        T::Err: fmt::Display,
    {
        let set = self.set(node)?;
        if set.is_empty() {
            self.problems
                .add(&node.span(), "this list must not be empty");
            return None;
        }
        Some(set)
    }

    pub(super) fn version(&mut self, node: &Spanned<DeValue<'_>>) -> Option<PolicyVersion> {
        let Some(integer) = node.get_ref().as_integer() else {
            self.wrong_type(node, "a whole number");
            return None;
        };
        // TOML's integers are signed.
        let number = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        match number.and_then(|number| u64::try_from(number).ok()) {
            Some(number) if number >= 1 => Some(PolicyVersion(number)),
            _ => {
                self.problems.add(&node.span(), "versions count from 1");
                None
            }
        }
    }

    pub(super) fn moment(&mut self, node: &Spanned<DeValue<'_>>) -> Option<String> {
        let text = self.text(node)?;
        match check_moment(text) {
            Ok(()) => Some(text.to_owned()),
            Err(error) => {
                self.problems.add(&node.span(), error.to_string());
                None
            }
        }
    }

    pub(super) fn words(&mut self, node: &Spanned<DeValue<'_>>) -> Option<String> {
        let text = self.text(node)?;
        if text.trim().is_empty() || text.len() > TEXT_BYTES_MAX {
            let message = format!("this text has 1 to {TEXT_BYTES_MAX} bytes");
            self.problems.add(&node.span(), message);
            return None;
        }
        Some(text.to_owned())
    }

    /// The first and the last day.
    pub(super) fn days(&mut self, node: &Spanned<DeValue<'_>>) -> Option<(Date, Date)> {
        let days = match node.get_ref().as_array() {
            Some(list) if list.len() == 2 => (self.parsed(&list[0])?, self.parsed(&list[1])?),
            _ => {
                self.problems.add(
                    &node.span(),
                    "here stand two dates: the first and the last day",
                );
                return None;
            }
        };
        if days.0 > days.1 {
            self.problems
                .add(&node.span(), "the last day is before the first");
            return None;
        }
        Some(days)
    }
}

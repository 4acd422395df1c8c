//! Reads the TOML source of a policy and checks it as a whole.
//!
//! It walks the parsed tables itself instead of deriving, because then a field
//! that is not known, a word that is misspelt and a region that is missing all
//! get a line, a column and a suggestion, and all of them at once.

mod fields;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{PolicyError, Problems, nearest};
use super::unenforced::When;
use super::{
    Access, Class, Digest, Failover, Jurisdiction, KeyNames, Policy, Region, Retention, SCHEMA,
    Span, TagRules, Transfer, Unenforced,
};
use crate::address::{PolicyVersion, RegionName, Tag};
use crate::limits::POLICY_BYTES_MAX;

const ROOT: &[&str] = &[
    "schema",
    "version",
    "supersedes",
    "effective_at",
    "regions",
    "tags",
    "transfers",
];

const REGION: &[&str] = &["jurisdiction", "within"];

const TAG: &[&str] = &[
    "class",
    "home",
    "store",
    "replicate_to",
    "serve",
    "access_from",
    "on_isolation",
    "failover",
    "key_names",
    "history",
    "retention",
    "on_tighten",
];

const RETENTION: &[&str] = &["min", "max"];

const ON_TIGHTEN: &[&str] = &["purge_within"];

const TRANSFER: &[&str] = &[
    "tag",
    "from",
    "to",
    "mode",
    "mechanism",
    "assessment",
    "valid",
];

/// How long old versions are kept when the tag does not say.
pub(super) const HISTORY_DEFAULT: Span = Span::from_seconds(600);

/// The longest free text, in bytes: it names a document, it is none.
const TEXT_BYTES_MAX: usize = 256;

/// Reads a policy document.
pub(super) fn read(source: &str) -> Result<Policy, PolicyError> {
    let mut problems = Problems::new(source);
    if source.len() > POLICY_BYTES_MAX {
        problems.add(
            &(0..0),
            format!("a policy has at most {POLICY_BYTES_MAX} bytes"),
        );
        return Err(problems.into_error());
    }
    let root = match DeTable::parse(source) {
        Ok(root) => root,
        Err(error) => {
            let span = error.span().unwrap_or(0..0);
            problems.add(&span, error.message().replace('\n', "; "));
            return Err(problems.into_error());
        }
    };
    let mut reader = Reader {
        problems,
        unenforced: Vec::new(),
    };
    let policy = reader.policy(root.get_ref());
    reader.unenforced.sort();
    match policy {
        Some(policy) if reader.problems.is_empty() => Ok(Policy {
            unenforced: reader.unenforced,
            ..policy
        }),
        _ => Err(reader.problems.into_error()),
    }
}

/// One table of the document.
struct Fields<'t, 's> {
    /// Where to point when a field is missing.
    span: Range<usize>,
    /// What it is, for messages: `tag \`eu-only\``.
    what: String,
    /// Its fields.
    table: &'t DeTable<'s>,
}

impl<'t, 's> Fields<'t, 's> {
    fn get(&self, field: &str) -> Option<&'t Spanned<DeValue<'s>>> {
        self.table.get(field)
    }

    /// Where a field stands; where the table stands, if there is none.
    fn span_of(&self, field: &str) -> Range<usize> {
        self.get(field).map_or(self.span.clone(), Spanned::span)
    }
}

/// The state of reading one document.
struct Reader<'s> {
    problems: Problems<'s>,
    unenforced: Vec<Unenforced>,
}

impl Reader<'_> {
    fn policy(&mut self, root: &DeTable<'_>) -> Option<Policy> {
        let fields = Fields {
            span: 0..0,
            what: "the policy".to_owned(),
            table: root,
        };
        // First, because another schema has other fields.
        let schema = self.required(&fields, "schema", Self::text)?;
        if schema != SCHEMA {
            let span = fields.span_of("schema");
            let message = format!("the schema is not the one of this build, `{SCHEMA}`");
            self.problems.add(&span, message);
            return None;
        }
        self.check_fields(&fields, ROOT, "", "");
        let version = self.required(&fields, "version", Self::version);
        let supersedes = self.optional(&fields, "supersedes", Self::parsed::<Digest>);
        self.check_supersedes(&fields, version);
        let effective_at = self.optional(&fields, "effective_at", Self::moment);
        let regions = self.regions(&fields);
        let names: BTreeSet<RegionName> = regions.keys().cloned().collect();
        self.check_groups(&fields, &regions);
        let places = Places::of(&names, &regions);
        let tags = self.tags(&fields, &places);
        let transfers = self.transfers(&fields, &places, &tags);
        let regions = regions
            .into_iter()
            .filter_map(|(name, region)| Some((name, region?)));
        let tags = tags
            .into_iter()
            .filter_map(|(name, rules)| Some((name, rules?)));
        Some(Policy {
            version: version?,
            supersedes,
            effective_at,
            regions: regions.collect(),
            tags: tags.collect(),
            transfers,
            unenforced: Vec::new(),
        })
    }

    fn check_supersedes(&mut self, fields: &Fields<'_, '_>, version: Option<PolicyVersion>) {
        let given = fields.get("supersedes").is_some();
        match version {
            Some(PolicyVersion(1)) if given => {
                let message = "version 1 supersedes nothing; leave `supersedes` away";
                self.problems.add(&fields.span_of("supersedes"), message);
            }
            Some(PolicyVersion(2..)) if !given => {
                let message = "a version above 1 needs `supersedes`, the digest of the one before";
                self.problems.add(&fields.span_of("version"), message);
            }
            _ => {}
        }
    }

    /// The regions; one that was not read stays under its name, so that what
    /// refers to it is no second problem.
    fn regions(&mut self, root: &Fields<'_, '_>) -> BTreeMap<RegionName, Option<Region>> {
        let mut regions = BTreeMap::new();
        let Some(node) = root.get("regions") else {
            self.problems
                .add(&root.span, "the policy needs a region: `[regions.NAME]`");
            return regions;
        };
        for (name, fields) in self.named::<RegionName>(node, "region", "regions", REGION) {
            let jurisdiction = self.required(&fields, "jurisdiction", Self::parsed::<Jurisdiction>);
            let within = self.optional(&fields, "within", Self::set::<Jurisdiction>);
            let region = jurisdiction.map(|jurisdiction| Region {
                jurisdiction,
                within: within.unwrap_or_default(),
            });
            regions.insert(name, region);
        }
        if regions.is_empty() {
            self.problems
                .add(&node.span(), "the policy needs a region: `[regions.NAME]`");
        }
        regions
    }

    /// Groups are a fact about a jurisdiction, not about a region: callers are
    /// known by jurisdiction, so all regions under one must say the same.
    fn check_groups(
        &mut self,
        root: &Fields<'_, '_>,
        regions: &BTreeMap<RegionName, Option<Region>>,
    ) {
        let mut first: BTreeMap<&Jurisdiction, (&RegionName, &Region)> = BTreeMap::new();
        for (name, region) in regions {
            let Some(region) = region else { continue };
            let (other, known) = *first.entry(&region.jurisdiction).or_insert((name, region));
            if known.within == region.within {
                continue;
            }
            let table = root
                .get("regions")
                .and_then(|node| node.get_ref().as_table());
            let key = table.and_then(|table| table.get_key_value(name.as_str()));
            let span = key.map_or(0..0, |(key, _)| key.span());
            let code = &region.jurisdiction;
            let message =
                format!("regions `{other}` and `{name}` are both in {code} but differ in `within`");
            self.problems.add(&span, message);
        }
    }

    fn tags(
        &mut self,
        root: &Fields<'_, '_>,
        places: &Places<'_>,
    ) -> BTreeMap<Tag, Option<TagRules>> {
        let mut tags = BTreeMap::new();
        let Some(node) = root.get("tags") else {
            return tags;
        };
        for (name, fields) in self.named::<Tag>(node, "tag", "tags", TAG) {
            let rules = self.rules(&fields, places);
            tags.insert(name, rules);
        }
        tags
    }

    fn rules(&mut self, fields: &Fields<'_, '_>, places: &Places<'_>) -> Option<TagRules> {
        let class = self
            .optional(fields, "class", Self::choice)
            .unwrap_or(Class::Personal);
        let home = self.required(fields, "home", Self::parsed::<RegionName>);
        let store = self.required(fields, "store", Self::filled::<RegionName>);
        let mirrors = self.optional(fields, "replicate_to", Self::set::<RegionName>);
        let serve = self.optional(fields, "serve", Self::filled::<RegionName>);
        let access = self.optional(fields, "access_from", Self::filled::<Access>);
        let on_isolation = self.optional(fields, "on_isolation", Self::choice);
        let failover = self.optional(fields, "failover", Self::choice);
        let key_names = self.optional(fields, "key_names", Self::choice);
        let history = self.optional(fields, "history", Self::parsed::<Span>);
        let retention = self.optional(fields, "retention", Self::retention);
        let purge_within = self.optional(fields, "on_tighten", Self::on_tighten);

        let (home, store) = (home?, store?);
        let replicate_to = mirrors.unwrap_or_default();
        let serve = serve.unwrap_or_else(|| store.clone());
        let access_from =
            access.unwrap_or_else(|| serve.iter().cloned().map(Access::Region).collect());
        let rules = TagRules {
            class,
            home,
            store,
            replicate_to,
            serve,
            access_from,
            on_isolation: on_isolation.unwrap_or(class.on_isolation()),
            failover: failover.unwrap_or(Failover::Sovereign),
            key_names: key_names.unwrap_or(KeyNames::Plain),
            history: history.unwrap_or(HISTORY_DEFAULT),
            retention,
            purge_within,
        };
        self.check_rules(fields, &rules, places);
        Some(rules)
    }

    /// What no field can say alone.
    fn check_rules(&mut self, fields: &Fields<'_, '_>, rules: &TagRules, places: &Places<'_>) {
        self.check_region(&fields.span_of("home"), &rules.home, places);
        let lists = [
            ("store", &rules.store),
            ("replicate_to", &rules.replicate_to),
            ("serve", &rules.serve),
        ];
        for (field, names) in lists {
            // A list that is not there is a default; its source is checked.
            let Some(node) = fields.get(field) else {
                continue;
            };
            for name in names {
                self.check_region(&item_span(node, name.as_str()), name, places);
            }
        }
        let home = &rules.home;
        if !rules.store.contains(home) {
            let message = format!("the home `{home}` must be in `store`");
            self.problems.add(&fields.span_of("home"), message);
        }
        if !rules.serve.contains(home) {
            let message = format!("the home `{home}` handles plaintext, so it must be in `serve`");
            self.problems.add(&fields.span_of("serve"), message);
        }
        if let Some(node) = fields.get("replicate_to") {
            for mirror in &rules.replicate_to {
                let span = item_span(node, mirror.as_str());
                if mirror == home {
                    let message = format!("`{mirror}` is the home, which is no mirror of itself");
                    self.problems.add(&span, message);
                } else if !rules.store.contains(mirror) {
                    let message = format!("the mirror `{mirror}` must be in `store`");
                    self.problems.add(&span, message);
                }
            }
        }
        let Some(node) = fields.get("access_from") else {
            return;
        };
        for entry in &rules.access_from {
            self.check_access(&item_span(node, &entry.to_string()), entry, places);
        }
    }

    fn check_region(&mut self, span: &Range<usize>, name: &RegionName, places: &Places<'_>) {
        if !places.regions.contains(name) {
            let meant = nearest(name.as_str(), places.regions.iter().map(RegionName::as_str));
            self.problems
                .add_meant(span, format!("there is no region `{name}`"), meant);
        }
    }

    fn check_access(&mut self, span: &Range<usize>, entry: &Access, places: &Places<'_>) {
        let code = match entry {
            Access::Region(name) => return self.check_region(span, name, places),
            Access::Jurisdiction(code) => code,
        };
        if !places.jurisdictions.contains(code) {
            let meant = nearest(
                code.as_str(),
                places.jurisdictions.iter().map(|code| code.as_str()),
            );
            let message = format!("no region is in or within the jurisdiction `{code}`");
            self.problems.add_meant(span, message, meant);
        }
    }

    fn retention(&mut self, node: &Spanned<DeValue<'_>>) -> Option<Retention> {
        let fields = self.table(node, "`retention`", RETENTION)?;
        let min = self.optional(&fields, "min", Self::parsed::<Span>);
        let max = self.optional(&fields, "max", Self::parsed::<Span>);
        if fields.table.is_empty() {
            self.problems
                .add(&fields.span, "`retention` needs `min` or `max`");
        }
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            self.problems
                .add(&fields.span, "`min` must not be longer than `max`");
        }
        Some(Retention { min, max })
    }

    fn on_tighten(&mut self, node: &Spanned<DeValue<'_>>) -> Option<Span> {
        let fields = self.table(node, "`on_tighten`", ON_TIGHTEN)?;
        self.required(&fields, "purge_within", Self::parsed::<Span>)
    }

    fn transfers(
        &mut self,
        root: &Fields<'_, '_>,
        places: &Places<'_>,
        tags: &BTreeMap<Tag, Option<TagRules>>,
    ) -> Vec<Transfer> {
        let Some(node) = root.get("transfers") else {
            return Vec::new();
        };
        let Some(list) = node.get_ref().as_array() else {
            self.wrong_type(node, "a list of tables, `[[transfers]]`");
            return Vec::new();
        };
        let mut transfers = Vec::new();
        for node in list {
            let Some(fields) = self.table(node, "a transfer", TRANSFER) else {
                continue;
            };
            if let Some(transfer) = self.transfer(&fields, places, tags) {
                transfers.push(transfer);
            }
        }
        transfers.sort();
        transfers.dedup();
        transfers
    }

    fn transfer(
        &mut self,
        fields: &Fields<'_, '_>,
        places: &Places<'_>,
        tags: &BTreeMap<Tag, Option<TagRules>>,
    ) -> Option<Transfer> {
        let tag = self.required(fields, "tag", Self::parsed::<Tag>);
        let from = self.required(fields, "from", Self::parsed::<RegionName>);
        let to = self.required(fields, "to", Self::parsed::<RegionName>);
        let mode = self.required(fields, "mode", Self::choice);
        let mechanism = self.required(fields, "mechanism", Self::words);
        let assessment = self.required(fields, "assessment", Self::words);
        let valid = self.required(fields, "valid", Self::days);

        let (tag, from, to) = (tag?, from?, to?);
        if !tags.contains_key(&tag) {
            let meant = nearest(tag.as_str(), tags.keys().map(Tag::as_str));
            let message = format!("there is no tag `{tag}`");
            self.problems
                .add_meant(&fields.span_of("tag"), message, meant);
        }
        self.check_region(&fields.span_of("from"), &from, places);
        self.check_region(&fields.span_of("to"), &to, places);
        if from == to {
            self.problems
                .add(&fields.span_of("to"), "`from` and `to` are the same region");
        }
        if let Some(Some(rules)) = tags.get(&tag)
            && !rules.store.contains(&from)
        {
            let message = format!("`{from}` does not hold `{tag}`, so it has nothing to transfer");
            self.problems.add(&fields.span_of("from"), message);
        }
        let (valid_from, valid_until) = valid?;
        Some(Transfer {
            tag,
            from,
            to,
            mode: mode?,
            mechanism: mechanism?,
            assessment: assessment?,
            valid_from,
            valid_until,
        })
    }
}

/// What fields may refer to.
struct Places<'n> {
    /// The regions.
    regions: &'n BTreeSet<RegionName>,
    /// The jurisdictions of the regions and the groups they are within.
    jurisdictions: BTreeSet<Jurisdiction>,
}

impl<'n> Places<'n> {
    fn of(names: &'n BTreeSet<RegionName>, regions: &BTreeMap<RegionName, Option<Region>>) -> Self {
        let mut jurisdictions = BTreeSet::new();
        for region in regions.values().flatten() {
            jurisdictions.insert(region.jurisdiction.clone());
            jurisdictions.extend(region.within.iter().cloned());
        }
        Self {
            regions: names,
            jurisdictions,
        }
    }
}

/// Whether a value asks for what a rule names.
fn asks(value: &DeValue<'_>, when: When) -> bool {
    match when {
        When::Present => true,
        When::NotEmpty => value.as_array().is_none_or(|list| !list.is_empty()),
        When::Is(word) => value.as_str() == Some(word),
        When::OtherThan(seconds) => {
            let span = value.as_str().and_then(|text| text.parse::<Span>().ok());
            span.is_some_and(|span| span.seconds != seconds)
        }
    }
}

/// Where an item of a list stands; where the list stands, if it is not there.
fn item_span(list: &Spanned<DeValue<'_>>, text: &str) -> Range<usize> {
    let items = list.get_ref().as_array();
    let item = items.and_then(|items| {
        items
            .iter()
            .find(|item| item.get_ref().as_str() == Some(text))
    });
    item.unwrap_or(list).span()
}

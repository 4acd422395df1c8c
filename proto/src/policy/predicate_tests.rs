//! The predicate against a model that knows only sets of numbers, over every
//! tag, region, kind and caller; and the demo policy, written out.

use proptest::prelude::*;

use super::*;
use crate::address::{RegionName, Tag};
use crate::reason::Reason;

/// How many regions the model declares. One name more is asked about, which no
/// policy knows.
const REGIONS: usize = 4;

/// How many tags the model declares. One name more is asked about.
const TAGS: usize = 3;

/// The codes that regions and callers have. The last is under no region.
const CODES: [&str; 3] = ["AA", "BB", "ZZ"];

/// The groups of each code in `CODES`, as bits over `GROUPS`, are drawn.
const GROUPS: [&str; 2] = ["GA", "GB"];

/// One tag, as sets of numbers.
#[derive(Clone, Debug)]
struct ModelTag {
    home: usize,
    store: [bool; REGIONS],
    serve: Option<[bool; REGIONS]>,
    access: Option<ModelAccess>,
}

/// Who may call, as sets of numbers.
#[derive(Clone, Debug)]
struct ModelAccess {
    regions: [bool; REGIONS],
    codes: [bool; 2],
    groups: [bool; 2],
}

/// A whole policy, as sets of numbers.
#[derive(Clone, Debug)]
struct Model {
    code_of_region: [usize; REGIONS],
    groups_of_code: [[bool; 2]; 2],
    tags: Vec<ModelTag>,
}

impl Model {
    fn holds(&self, tag: usize, region: usize) -> bool {
        tag < TAGS && region < REGIONS && self.tags[tag].store[region]
    }

    fn served(&self, tag: usize) -> [bool; REGIONS] {
        self.tags[tag].serve.unwrap_or(self.tags[tag].store)
    }

    fn may_call(&self, tag: usize, region: usize, code: Option<usize>) -> bool {
        if tag >= TAGS || region >= REGIONS {
            return false;
        }
        let Some(access) = &self.tags[tag].access else {
            return self.served(tag)[region];
        };
        if access.regions[region] {
            return true;
        }
        match code.unwrap_or(self.code_of_region[region]) {
            // Under no region, so in no group and in no entry.
            2.. => false,
            code => {
                let in_group = |group: usize| {
                    self.used_group(group)
                        && access.groups[group]
                        && self.used_code(code)
                        && self.groups_of_code[code][group]
                };
                (self.used_code(code) && access.codes[code]) || in_group(0) || in_group(1)
            }
        }
    }

    fn serves(&self, tag: usize, region: usize, caller: usize, code: Option<usize>) -> bool {
        tag < TAGS
            && region < REGIONS
            && self.served(tag)[region]
            && self.may_call(tag, caller, code)
    }

    /// Whether any region is under the code: others cannot be written down.
    fn used_code(&self, code: usize) -> bool {
        self.code_of_region.contains(&code)
    }

    fn used_group(&self, group: usize) -> bool {
        (0..2).any(|code| self.used_code(code) && self.groups_of_code[code][group])
    }

    fn document(&self) -> String {
        let mut text = String::from("schema = \"domicile.policy/v1\"\nversion = 1\n");
        for (region, code) in self.code_of_region.iter().enumerate() {
            let within = picked(&self.groups_of_code[*code], |group| {
                GROUPS[group].to_owned()
            });
            text += &format!("[regions.r{region}]\njurisdiction = \"{}\"\n", CODES[*code]);
            text += &format!("within = [{within}]\n");
        }
        let name = |region: usize| format!("r{region}");
        for (number, tag) in self.tags.iter().enumerate() {
            text += &format!("[tags.t{number}]\nhome = \"r{}\"\n", tag.home);
            text += &format!("store = [{}]\n", picked(&tag.store, name));
            if let Some(serve) = &tag.serve {
                text += &format!("serve = [{}]\n", picked(serve, name));
            }
            if let Some(access) = &tag.access {
                let codes = [0, 1].map(|code| access.codes[code] && self.used_code(code));
                let groups = [0, 1].map(|group| access.groups[group] && self.used_group(group));
                let lists = [
                    picked(&access.regions, |region| format!("region:r{region}")),
                    picked(&codes, |code| format!("jurisdiction:{}", CODES[code])),
                    picked(&groups, |group| format!("jurisdiction:{}", GROUPS[group])),
                ];
                let lists: Vec<_> = lists.into_iter().filter(|list| !list.is_empty()).collect();
                text += &format!("access_from = [{}]\n", lists.join(", "));
            }
        }
        text
    }
}

fn picked(set: &[bool], name: impl Fn(usize) -> String) -> String {
    let names = (0..set.len())
        .filter(|at| set[*at])
        .map(|at| format!("\"{}\"", name(at)));
    names.collect::<Vec<_>>().join(", ")
}

fn model_tags() -> impl Strategy<Value = ModelTag> {
    let serve = proptest::option::of(any::<[bool; REGIONS]>());
    let access = (
        0..REGIONS,
        any::<[bool; REGIONS]>(),
        any::<[bool; 2]>(),
        any::<[bool; 2]>(),
    );
    let access = access.prop_map(|(least, mut regions, codes, groups)| {
        // The list must not be empty.
        regions[least] |= !codes[0] && !codes[1] && !groups[0] && !groups[1] || least == 0;
        ModelAccess {
            regions,
            codes,
            groups,
        }
    });
    (
        0..REGIONS,
        any::<[bool; REGIONS]>(),
        serve,
        proptest::option::of(access),
    )
        .prop_map(|(home, mut store, mut serve, access)| {
            store[home] = true;
            if let Some(serve) = &mut serve {
                serve[home] = true;
            }
            ModelTag {
                home,
                store,
                serve,
                access,
            }
        })
}

fn models() -> impl Strategy<Value = Model> {
    let codes = proptest::array::uniform4(0..2usize);
    let tags = proptest::collection::vec(model_tags(), TAGS);
    (codes, any::<[[bool; 2]; 2]>(), tags).prop_map(|(code_of_region, groups_of_code, tags)| {
        let mut model = Model {
            code_of_region,
            groups_of_code,
            tags,
        };
        // Entries that name unused codes vanish from the document; keep the
        // lists from becoming empty.
        for at in 0..TAGS {
            let home = model.tags[at].home;
            let used = |access: &ModelAccess| {
                access.regions.contains(&true)
                    || (0..2).any(|code| access.codes[code] && model.used_code(code))
                    || (0..2).any(|group| access.groups[group] && model.used_group(group))
            };
            let empty = model.tags[at]
                .access
                .as_ref()
                .is_some_and(|access| !used(access));
            if empty && let Some(access) = &mut model.tags[at].access {
                access.regions[home] = true;
            }
        }
        model
    })
}

fn tag(number: usize) -> Tag {
    Tag::new(&format!("t{number}")).unwrap()
}

fn region(number: usize) -> RegionName {
    RegionName::new(&format!("r{number}")).unwrap()
}

proptest! {
    /// The numbers beyond the declared ones are the names no policy knows.
    #[test]
    fn the_predicate_is_the_model(model in models()) {
        let document = model.document();
        let policy = Policy::parse(&document)
            .map_err(|error| TestCaseError::fail(format!("{error}\n{document}")))?;
        for t in 0..=TAGS {
            for r in 0..=REGIONS {
                for kind in Kind::ALL {
                    let held = may_hold(&policy, &tag(t), &region(r), *kind).is_allowed();
                    prop_assert_eq!(held, model.holds(t, r), "hold {} {} {}", t, r, kind);
                }
                let codes = [None, Some(0), Some(1), Some(2)];
                for (c, code) in (0..=REGIONS).flat_map(|c| codes.map(|code| (c, code))) {
                    let jurisdiction = code.map(|code: usize| CODES[code].parse().unwrap());
                    let caller = Caller { region: region(c), jurisdiction };
                    let served = may_serve(&policy, &tag(t), &region(r), &caller).is_allowed();
                    prop_assert_eq!(served, model.serves(t, r, c, code), "serve {} {} {:?}", t, r, caller);
                    let called = may_access(&policy, &tag(t), &caller).is_allowed();
                    prop_assert_eq!(called, model.may_call(t, c, code), "access {} {:?}", t, caller);
                }
            }
        }
    }

    /// The canonical text gives the same answers as the source.
    #[test]
    fn the_canonical_text_means_the_same(model in models()) {
        let policy = Policy::parse(&model.document()).unwrap();
        let again = Policy::parse(&policy.canonical()).unwrap();
        prop_assert_eq!(again.digest(), policy.digest());
        prop_assert_eq!(again.tags(), policy.tags());
        prop_assert_eq!(again.regions(), policy.regions());
    }
}

/// The whole of the demo policy: who holds, who serves, who may call.
#[test]
fn the_demo_policy_written_out() {
    let policy = Policy::parse(DEMO).unwrap();
    let mut shown = String::new();
    for tag in policy.tags().keys() {
        let list = |allowed: &dyn Fn(&RegionName) -> bool| {
            let names = policy.regions().keys().filter(|region| allowed(region));
            names.map(RegionName::as_str).collect::<Vec<_>>().join(" ")
        };
        let held = list(&|region| {
            let of = |kind: &Kind| may_hold(&policy, tag, region, *kind).is_allowed();
            assert_eq!(Kind::ALL.iter().any(of), Kind::ALL.iter().all(of));
            of(&Kind::Value)
        });
        let home = policy.home(tag).unwrap();
        shown += &format!("{tag}: home {home}, held in {held}\n");
        for server in policy.regions().keys() {
            let callers = list(&|caller| {
                let caller = Caller::of_region(caller.clone());
                may_serve(&policy, tag, server, &caller).is_allowed()
            });
            shown += &format!("  {server} serves callers in: {callers}\n");
        }
    }
    let wanted = "\
eu-only: home eu, held in eu
  ap serves callers in: \n  eu serves callers in: eu
  us serves callers in: \n\
eu-shared: home eu, held in eu
  ap serves callers in: \n  eu serves callers in: eu us
  us serves callers in: \n\
global: home eu, held in ap eu us
  ap serves callers in: ap eu us
  eu serves callers in: ap eu us
  us serves callers in: ap eu us
us-only: home us, held in us
  ap serves callers in: \n  eu serves callers in: \n  us serves callers in: us
";
    assert_eq!(shown, wanted);
}

#[test]
fn what_is_not_known_is_denied_with_the_reason() {
    let policy = Policy::parse(DEMO).unwrap();
    let name = |name: &str| RegionName::new(name).unwrap();
    let (known, unknown) = (Tag::new("eu-only").unwrap(), Tag::new("nope").unwrap());
    let caller = |region: &str| Caller::of_region(name(region));
    let denied = |verdict: Verdict, denial: Denial, reason: Reason| {
        assert_eq!(verdict, Verdict::Denied(denial));
        assert_eq!(denial.reason(), reason);
    };
    use Denial as D;
    use Reason as R;
    for kind in Kind::ALL {
        let hold = |tag: &Tag, region: &str| may_hold(&policy, tag, &name(region), *kind);
        denied(hold(&unknown, "eu"), D::UnknownTag, R::UnknownTag);
        denied(
            hold(&known, "mars"),
            D::UnknownRegion,
            R::ResidencyViolation,
        );
        denied(hold(&known, "us"), D::NotInStore, R::ResidencyViolation);
        assert_eq!(hold(&known, "eu"), Verdict::Allowed);
    }
    let serve =
        |tag: &Tag, region: &str, from: &str| may_serve(&policy, tag, &name(region), &caller(from));
    denied(serve(&unknown, "eu", "eu"), D::UnknownTag, R::UnknownTag);
    denied(
        serve(&known, "mars", "eu"),
        D::UnknownRegion,
        R::ResidencyViolation,
    );
    denied(serve(&known, "us", "eu"), D::NotInServe, R::NotHeldHere);
    denied(
        serve(&known, "eu", "us"),
        D::NotInAccessFrom,
        R::AccessRegionDenied,
    );
    denied(
        serve(&known, "eu", "mars"),
        D::UnknownCallerRegion,
        R::AccessRegionDenied,
    );
    assert_eq!(serve(&known, "eu", "eu"), Verdict::Allowed);
    denied(
        may_access(&policy, &unknown, &caller("eu")),
        D::UnknownTag,
        R::UnknownTag,
    );
}

/// A caller that is physically in an allowed region but under another law is
/// judged by the law that its certificate names.
#[test]
fn a_jurisdiction_of_the_caller_replaces_that_of_its_region() {
    let source = DEMO.replace("[\"region:eu\", \"region:us\"]", "[\"jurisdiction:EEA\"]");
    let policy = Policy::parse(&source).unwrap();
    let shared = Tag::new("eu-shared").unwrap();
    let caller = |region: &str, code: Option<&str>| Caller {
        region: RegionName::new(region).unwrap(),
        jurisdiction: code.map(|code| code.parse().unwrap()),
    };
    let allowed = |caller: &Caller| may_access(&policy, &shared, caller).is_allowed();
    assert!(allowed(&caller("eu", None)));
    assert!(allowed(&caller("us", Some("DE"))));
    assert!(!allowed(&caller("eu", Some("US"))));
    assert!(!allowed(&caller("us", None)));
    // `FR` is in the EEA, but this policy does not say so.
    assert!(!allowed(&caller("eu", Some("FR"))));
}

#[test]
fn kinds_have_names_and_what_has_none_is_refused() {
    assert_eq!(Kind::ALL.len(), 16);
    for kind in Kind::ALL {
        assert_eq!(kind.name().parse(), Ok(*kind));
    }
    assert_eq!("rumour".parse::<Kind>(), Err(UnknownKind));
}

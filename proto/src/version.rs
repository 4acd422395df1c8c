//! The numbers that order things: versions of records, epochs of homes,
//! versions of the policy.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(
            /// The number as it stands on disk and on the wire.
            pub u64,
        );

        impl $name {
            /// The smallest. Nothing that exists has it.
            pub const ZERO: Self = Self(0);

            /// The greatest.
            pub const MAX: Self = Self(u64::MAX);

            /// The number as it stands on disk and on the wire.
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The smallest above this one; `None` above the greatest.
            pub const fn next(self) -> Option<Self> {
                match self.0.checked_add(1) {
                    Some(number) => Some(Self(number)),
                    None => None,
                }
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(number)
            }
        }

        impl From<$name> for u64 {
            fn from(number: $name) -> u64 {
                number.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// The version of a record: a hybrid logical clock of 48 bits of
    /// milliseconds since 1970 and 16 logical bits. The proposer stamps it
    /// above every version in its log, so it orders the writes of
    /// a group even where clocks go backwards.
    Version
}

number! {
    /// The epoch of a tag's home. It grows with every change of the home and
    /// never falls.
    Epoch
}

number! {
    /// The version of the residency policy. It grows with every change.
    PolicyVersion
}

number! {
    /// The index of an entry in the log of a group.
    Index
}

number! {
    /// The id of a range, the same in every region that holds it.
    RangeId
}

/// How many bits of a [`Version`] are logical.
const LOGICAL_BITS: u32 = 16;

impl Version {
    /// The greatest millisecond that a version can hold: in the year 10889.
    pub const MILLIS_MAX: u64 = (1 << (64 - LOGICAL_BITS)) - 1;

    /// A version of its two parts; `None` if `millis` passes
    /// [`Version::MILLIS_MAX`].
    pub const fn from_parts(millis: u64, logical: u16) -> Option<Self> {
        if millis > Self::MILLIS_MAX {
            return None;
        }
        // `as` because `From` is not const; it widens.
        Some(Self(millis << LOGICAL_BITS | logical as u64))
    }

    /// Milliseconds since 1970 by the clock of the proposer, or later.
    pub const fn millis(self) -> u64 {
        self.0 >> LOGICAL_BITS
    }

    /// The order among versions of one millisecond.
    pub const fn logical(self) -> u16 {
        (self.0 & ((1 << LOGICAL_BITS) - 1)) as u16
    }

    /// The version to stamp at `millis` after `self`: the clock where it is
    /// ahead, else the smallest version above. `None` when neither exists.
    pub fn after(self, millis: u64) -> Option<Self> {
        let clock = Self::from_parts(millis, 0)?;
        let next = self.next()?;
        Some(clock.max(next))
    }
}

#[cfg(test)]
mod tests {
    use super::{Epoch, Version};
    use proptest::prelude::*;

    #[test]
    fn the_parts_fill_the_number() {
        let version = Version::from_parts(1, 2).expect("small");
        assert_eq!(version.get(), 0x1_0002);
        assert_eq!(Version::MAX.millis(), Version::MILLIS_MAX);
        assert_eq!(Version::MAX.logical(), u16::MAX);
        assert_eq!(Version::from_parts(Version::MILLIS_MAX + 1, 0), None);
    }

    #[test]
    fn a_full_logical_part_carries_into_the_milliseconds() {
        let full = Version::from_parts(7, u16::MAX).expect("small");
        assert_eq!(full.next(), Version::from_parts(8, 0));
    }

    #[test]
    fn there_is_nothing_above_the_greatest() {
        assert_eq!(Version::MAX.next(), None);
        assert_eq!(Version::MAX.after(1), None);
        assert_eq!(Epoch::MAX.next(), None);
    }

    proptest! {
        #[test]
        fn parts_come_back_and_order_first_by_time(
            a in 0..=Version::MILLIS_MAX, b in 0..=Version::MILLIS_MAX, i: u16, j: u16,
        ) {
            let one = Version::from_parts(a, i).expect("in range");
            let other = Version::from_parts(b, j).expect("in range");
            prop_assert_eq!((one.millis(), one.logical()), (a, i));
            prop_assert_eq!(one.cmp(&other), (a, i).cmp(&(b, j)));
        }

        #[test]
        fn a_stamp_is_above_the_last_and_not_before_the_clock(
            last in 0..u64::MAX, millis in 0..=Version::MILLIS_MAX,
        ) {
            let stamp = Version(last).after(millis).expect("below the greatest");
            prop_assert!(stamp > Version(last));
            prop_assert!(stamp.millis() >= millis);
        }
    }
}

//! Verifying a certificate against the roots of the one region that it names.

use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;

use super::bundles::Bundles;
use super::refusal::{Refusal, Refused};
use super::spiffe::SpiffeId;

/// The most certificates of a chain, the leaf included.
const CHAIN_MAX: usize = 8;

/// The most bytes of a chain: a flood of large ones costs little more than one.
const CHAIN_BYTES_MAX: usize = 64 * 1024;

/// The tag of a URI among a certificate's names (RFC 5280, section 4.2.1.6).
const URI_TAG: u32 = 6;

/// What a certificate is used for on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// To be called.
    Server,
    /// To call.
    Client,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Use::Server => "being called (serverAuth)",
            Use::Client => "calling (clientAuth)",
        })
    }
}

/// A workload whose certificate was verified.
///
/// It is made by [`Bundles::verify`] alone.
#[derive(Clone)]
pub struct Identity {
    id: SpiffeId,
    chain: Arc<[CertificateDer<'static>]>,
    serial: Arc<str>,
    not_after: u64,
}

impl Identity {
    /// Who it is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The serial number of its certificate, in hex.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Until when its certificate is valid, in seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// What it showed: the leaf, and what leads from it to a root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (serial {})", self.id, self.serial)
    }
}

impl Bundles {
    /// Verifies a chain, the leaf first, as it is used at a time.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
        used: Use,
    ) -> Result<Identity, Refused> {
        let malformed = |what: &str| Refused::new(Refusal::Malformed, what);
        let (leaf, between) = chain
            .split_first()
            .ok_or_else(|| malformed("no certificate was shown"))?;
        let bytes: usize = chain.iter().map(|certificate| certificate.len()).sum();
        if chain.len() > CHAIN_MAX || bytes > CHAIN_BYTES_MAX {
            return Err(malformed("more certificates were shown than a chain has"));
        }
        let Leaf {
            id,
            serial,
            not_after,
            uses,
        } = Leaf::read(leaf)?;
        // The library takes one that does not say what it is for.
        if !uses.contains(&used) {
            return Err(Refused::new(
                Refusal::Purpose,
                format!("{id}: the certificate does not say that it is for {used}"),
            ));
        }
        let roots = self.roots_for(&id, now)?;
        let end = EndEntityCert::try_from(leaf).map_err(|e| refused(&id, &e))?;
        let usage = match used {
            Use::Server => KeyUsage::server_auth(),
            Use::Client => KeyUsage::client_auth(),
        };
        let signed_by_authorities = |path: &VerifiedPath<'_>| {
            for between in path.intermediate_certificates() {
                check_authority(&between.der()).map_err(|_| webpki::Error::EndEntityUsedAsCa)?;
            }
            Ok(())
        };
        let algorithms = rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .all;
        end.verify_for_usage(
            algorithms,
            &roots,
            between,
            now,
            usage,
            None,
            Some(&signed_by_authorities),
        )
        .map_err(|e| refused(&id, &e))?;
        Ok(Identity {
            id,
            chain: chain.iter().map(|c| c.clone().into_owned()).collect(),
            serial,
            not_after,
        })
    }
}

impl Bundles {
    /// The roots that may have made the certificate of an id.
    fn roots_for(&self, id: &SpiffeId, now: UnixTime) -> Result<Vec<TrustAnchor<'_>>, Refused> {
        if id.cluster != *self.cluster() {
            let (theirs, ours) = (&id.cluster, self.cluster());
            return Err(Refused::new(
                Refusal::OtherCluster,
                format!("{id} is of cluster {theirs}, not of {ours}"),
            ));
        }
        self.roots(&id.region, now).ok_or_else(|| {
            Refused::new(
                Refusal::UnknownRegion,
                format!("{id}: no roots of its region are known here; add its bundle"),
            )
        })
    }
}

/// What is read of a leaf before anything of it is believed.
struct Leaf {
    id: SpiffeId,
    serial: Arc<str>,
    not_after: u64,
    /// What it says that it is for (RFC 5280, section 4.2.1.12).
    uses: Vec<Use>,
}

impl Leaf {
    fn read(der: &CertificateDer<'_>) -> Result<Self, Refused> {
        let malformed = |what: &str| Refused::new(Refusal::Malformed, what);
        let purpose = |what: &str| Refused::new(Refusal::Purpose, what);
        let (rest, leaf) = X509Certificate::from_der(der)
            .map_err(|_| malformed("the certificate cannot be read"))?;
        if !rest.is_empty() {
            return Err(malformed("something follows the certificate"));
        }
        let id = id_of(&leaf)?;
        let is_authority = leaf
            .basic_constraints()
            .map_err(|_| malformed("its basic constraints cannot be read"))?
            .is_some_and(|constraints| constraints.value.ca);
        if is_authority {
            return Err(purpose(
                "it is an authority's certificate, not a workload's",
            ));
        }
        let usage = leaf
            .key_usage()
            .map_err(|_| malformed("its key usage cannot be read"))?
            .ok_or_else(|| purpose("it does not say what its key is for"))?
            .value;
        if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
            return Err(purpose(
                "its key must be for signatures of its own, and for no certificates or lists",
            ));
        }
        let serial: Arc<str> = leaf.raw_serial_as_string().replace(':', "").into();
        let not_after = until(&leaf);
        let uses = leaf
            .extended_key_usage()
            .map_err(|_| malformed("its extended key usage cannot be read"))?
            .map(|of| {
                [
                    (of.value.server_auth, Use::Server),
                    (of.value.client_auth, Use::Client),
                ]
            })
            .into_iter()
            .flatten()
            .filter_map(|(is, used)| is.then_some(used))
            .collect();
        Ok(Leaf {
            uses,
            id,
            serial,
            not_after,
        })
    }
}

/// The one id of a certificate that nobody has verified.
pub(super) fn id_in(der: &CertificateDer<'_>) -> Result<SpiffeId, Refused> {
    Leaf::read(der).map(|leaf| leaf.id)
}

/// The one id of a certificate.
fn id_of(leaf: &X509Certificate<'_>) -> Result<SpiffeId, Refused> {
    one_uri(leaf)?
        .parse()
        .map_err(|error| Refused::new(Refusal::Id, format!("its name is no id: {error}")))
}

/// The one URI among the names of a certificate.
pub(super) fn one_uri(leaf: &X509Certificate<'_>) -> Result<String, Refused> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|_| Refused::new(Refusal::Malformed, "its names cannot be read"))?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    // One that is no text counts, too: another reader may see an id in it.
    let uris: Vec<Option<&str>> = names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(Some(*uri)),
            GeneralName::Invalid(tag, _) if tag.0 == URI_TAG => Some(None),
            _ => None,
        })
        .collect();
    match uris[..] {
        [Some(uri)] => Ok(uri.to_owned()),
        [] | [None] => Err(Refused::new(Refusal::Id, "it has no SPIFFE id")),
        _ => Err(Refused::new(
            Refusal::Id,
            "it has more than one URI as its name",
        )),
    }
}

/// Refuses a certificate that may not sign others. Answers until when it is valid, in
/// seconds since 1970.
pub(super) fn check_authority(der: &CertificateDer<'_>) -> Result<u64, Refused> {
    let refused = |what: &str| Refused::new(Refusal::Authority, what);
    let (_, certificate) = X509Certificate::from_der(der)
        .map_err(|_| refused("a certificate of an authority cannot be read"))?;
    let constraints = certificate.basic_constraints();
    let is_authority = constraints.is_ok_and(|of| of.is_some_and(|of| of.value.ca));
    let usage = certificate.key_usage();
    let may_sign = usage.is_ok_and(|of| of.is_some_and(|of| of.value.key_cert_sign()));
    match is_authority && may_sign {
        true => Ok(until(&certificate)),
        false => Err(refused(
            "a certificate that signs others must be an authority's, with a key for that",
        )),
    }
}

/// Until when a certificate is valid, in seconds since 1970.
fn until(certificate: &X509Certificate<'_>) -> u64 {
    u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0)
}

/// What the library found, in our words.
fn refused(id: &SpiffeId, error: &webpki::Error) -> Refused {
    use webpki::Error as E;
    let (refusal, why) = match error {
        E::CertExpired { .. } => (
            Refusal::Expired,
            "the certificate, or one above it, has expired; renew it".to_owned(),
        ),
        E::CertNotValidYet { .. } => (
            Refusal::NotYetValid,
            "the certificate is not valid yet; compare the clocks of both machines".to_owned(),
        ),
        E::UnknownIssuer | E::InvalidSignatureForPublicKey => (
            Refusal::UnknownIssuer,
            format!(
                "no root of region {} made the certificate; if its authority is new, add its \
                 root to the bundle",
                id.region.as_str()
            ),
        ),
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension => (
            Refusal::Purpose,
            "the certificate is not for this use".to_owned(),
        ),
        E::EndEntityUsedAsCa
        | E::NameConstraintViolation
        | E::PathLenConstraintViolated
        | E::MalformedNameConstraint => (
            Refusal::Authority,
            format!("an authority above it may not make it ({error})"),
        ),
        E::CaUsedAsEndEntity => (
            Refusal::Purpose,
            "it is an authority's certificate, not a workload's".to_owned(),
        ),
        _ => (
            Refusal::Malformed,
            format!("the certificate is not valid ({error})"),
        ),
    };
    Refused::new(refusal, format!("{id}: {why}"))
}

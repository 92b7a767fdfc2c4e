//! The managed certificates: making them, and reading what was made. May import `desired`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, date_time_ymd,
};
use x509_parser::{extensions::GeneralName, pem::parse_x509_pem};

use crate::desired::tls::{Facts, Rotation, Seen, Step, leaf_is_due, next_step};

const DAY: Duration = Duration::from_hours(24);
/// The life of an authority.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(3650);
/// The life of a leaf.
const LEAF_LIFE: Duration = DAY.saturating_mul(90);
/// Clocks of nodes may be behind by this.
const SKEW: Duration = Duration::from_hours(1);

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to make a certificate for {name}")]
pub struct Error {
    name: String,
    source: rcgen::Error,
}

/// A certificate and its key, both PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

/// All that a Secret of an authority holds.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Authority {
    current: Option<Pair>,
    next: Option<Pair>,
    previous: Option<String>,
    /// The current one's certificate as the one before signed it: who trusts only that one accepts leaves of this one.
    cross: Option<String>,
    heeded: Option<String>,
}

impl Authority {
    /// Reads a Secret's data and the rotation that it says was heeded. What cannot be read is made anew.
    #[must_use]
    pub fn read(data: &BTreeMap<String, ByteString>, heeded: Option<String>) -> Self {
        let pair = |name: &str| {
            let certificate = text(data, &format!("{name}.crt")).filter(|pem| facts(pem).is_some())?;
            let key = text(data, &format!("{name}.key")).filter(|pem| KeyPair::from_pem(pem).is_ok())?;
            Some(Pair { certificate, key })
        };
        let (previous, cross) = (text(data, "previous.crt"), text(data, "cross.crt"));
        Self { current: pair("ca"), next: pair("next"), previous, cross, heeded }
    }

    /// The Secret's data.
    #[must_use]
    pub fn data(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::new();
        let mut put = |key: &str, text: &str| data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        for (name, pair) in [("ca", &self.current), ("next", &self.next)] {
            if let Some(pair) = pair {
                put(&format!("{name}.crt"), &pair.certificate);
                put(&format!("{name}.key"), &pair.key);
            }
        }
        for (name, certificate) in [("previous.crt", &self.previous), ("cross.crt", &self.cross)] {
            if let Some(certificate) = certificate {
                put(name, certificate);
            }
        }
        data
    }

    /// The rotation that was heeded last.
    #[must_use]
    pub fn heeded(&self) -> Option<&str> {
        self.heeded.as_deref()
    }

    /// All certificates that nodes shall trust, oldest first: the order does not change while a rotation goes on.
    #[must_use]
    pub fn bundle(&self) -> Option<String> {
        let current = self.current.as_ref()?;
        let mut all: Vec<&str> = vec![&current.certificate];
        all.extend(self.next.as_ref().map(|pair| pair.certificate.as_str()));
        all.extend(self.previous.as_deref());
        all.sort_by_key(|pem| facts(pem).map(|facts| (facts.not_before, facts.fingerprint)));
        Some(all.concat())
    }

    /// Takes the next step of the rotation, if one is due. Returns whether anything changed.
    pub fn step(&mut self, server: &str, seen: &Seen<'_>) -> Result<bool, Error> {
        let current = self.current.as_ref().and_then(|pair| facts(&pair.certificate));
        let rotation = Rotation {
            current: current.as_ref(),
            has_next: self.next.is_some(),
            has_previous: self.previous.is_some(),
            heeded: self.heeded.as_deref(),
        };
        let step = next_step(&rotation, seen);
        let wish = seen.wish.map(str::to_owned);
        match step {
            Step::Begin => (self.current, self.heeded) = (Some(authority(server, seen.now)?), wish),
            Step::PublishNext => (self.next, self.heeded) = (Some(authority(server, seen.now)?), wish),
            Step::Switch => {
                let (old, new) = (self.current.take(), self.next.take());
                self.cross =
                    old.as_ref().zip(new.as_ref()).map(|(old, new)| cross(server, old, new, seen.now)).transpose()?;
                (self.previous, self.current) = (old.map(|pair| pair.certificate), new);
            }
            Step::DropPrevious => self.previous = None,
            Step::Stay => {}
        }
        Ok(step != Step::Stay)
    }

    /// The leaf that shall be mounted: `held`, unless it is due; with what leads from it to the authority before, so that
    /// who read its trust before a rotation still accepts it after. `None` only before the first step.
    pub fn leaf(&self, held: Option<Pair>, names: &BTreeSet<String>, now: Timestamp) -> Result<Option<Pair>, Error> {
        let Some((pair, own)) = self.current.as_ref().and_then(|pair| Some((pair, facts(&pair.certificate)?))) else {
            return Ok(None);
        };
        let known = held.as_ref().and_then(|held| facts(&held.certificate));
        if !leaf_is_due(known.as_ref(), &own, names, now) {
            return Ok(held);
        }
        let mut leaf = leaf(pair, names, now)?;
        leaf.certificate.push_str(self.cross.as_deref().unwrap_or_default());
        Ok(Some(leaf))
    }

    /// Whether a leaf with this fingerprint is `held` and was signed by the current authority.
    #[must_use]
    pub fn shows(&self, held: Option<&Pair>, fingerprint: Option<&str>) -> bool {
        let current = self.current.as_ref().and_then(|pair| facts(&pair.certificate));
        let leaf = held.and_then(|pair| facts(&pair.certificate));
        match (current, leaf) {
            (Some(current), Some(leaf)) => {
                leaf.issuer == current.subject && fingerprint == Some(leaf.fingerprint.as_str())
            }
            _ => false,
        }
    }
}

/// A text of a Secret.
#[must_use]
pub fn text(data: &BTreeMap<String, ByteString>, key: &str) -> Option<String> {
    String::from_utf8(data.get(key)?.0.clone()).ok()
}

/// What is known of a certificate in PEM.
#[must_use]
pub fn facts(pem: &str) -> Option<Facts> {
    let (_, pem) = parse_x509_pem(pem.as_bytes()).ok()?;
    let certificate = pem.parse_x509().ok()?;
    let second = |time: x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let names = alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => address(bytes),
        _ => None,
    });
    Some(Facts {
        not_before: second(certificate.validity().not_before)?,
        not_after: second(certificate.validity().not_after)?,
        names: names.collect(),
        subject: hex::encode(certificate.subject().as_raw()),
        issuer: hex::encode(certificate.issuer().as_raw()),
        fingerprint: hex::encode(digest(&SHA256, &pem.contents)),
    })
}

fn address(bytes: &[u8]) -> Option<String> {
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    Some(address.to_string())
}

fn authority(server: &str, now: Timestamp) -> Result<Pair, Error> {
    let failed = |source| Error { name: server.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let certificate =
        authority_params(server, &key, now).and_then(|params| params.self_signed(&key)).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The certificate of `new`, signed by `old` instead of by itself.
fn cross(server: &str, old: &Pair, new: &Pair, now: Timestamp) -> Result<String, Error> {
    let failed = |source| Error { name: server.to_owned(), source };
    let signer = KeyPair::from_pem(&old.key).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&old.certificate, signer).map_err(failed)?;
    let key = KeyPair::from_pem(&new.key).map_err(failed)?;
    let mut params = authority_params(server, &key, now).map_err(failed)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(&key, &issuer).map_err(failed)?.pem())
}

fn authority_params(server: &str, key: &KeyPair, now: Timestamp) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    // Two authorities of one server must not share a subject: leaves name who signed them by it.
    let sign = crate::sign::hash(&serde_json::json!(key.public_key_pem()));
    params.distinguished_name.push(DnType::CommonName, format!("Entrepot cache-{server} CA {sign}"));
    // It signs leaves, and the authority after it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    lasting(&mut params, now, AUTHORITY_LIFE);
    Ok(params)
}

fn leaf(authority: &Pair, names: &BTreeSet<String>, now: Timestamp) -> Result<Pair, Error> {
    let failed = |source| Error { name: names.iter().next().cloned().unwrap_or_default(), source };
    let signer = KeyPair::from_pem(&authority.key).map_err(failed)?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, signer).map_err(failed)?;
    let key = KeyPair::generate().map_err(failed)?;
    let (addresses, hosts): (Vec<&String>, Vec<&String>) =
        names.iter().partition(|name| name.parse::<IpAddr>().is_ok());
    let mut params = CertificateParams::new(hosts.into_iter().cloned().collect::<Vec<_>>()).map_err(failed)?;
    let addresses = addresses.iter().filter_map(|text| text.parse().ok()).map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    params.distinguished_name.push(DnType::CommonName, "Entrepot cache server");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    lasting(&mut params, now, LEAF_LIFE);
    let certificate = params.signed_by(&key, &issuer).map_err(failed)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

fn lasting(params: &mut CertificateParams, now: Timestamp, life: Duration) {
    let now = Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default());
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(SKEW);
    params.not_after = epoch + now + life;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    };
    use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};

    use super::*;

    fn seen(wish: Option<&'static str>, trust: bool, loaded: bool) -> Seen<'static> {
        let now = Timestamp::from_second(1_800_000_000).unwrap_or_default();
        Seen { now, wish, nodes_trust_all: trust, leaf_is_loaded: loaded }
    }

    /// Whether a client that trusts `roots` accepts what a server with this leaf shows.
    fn accepts(roots: &str, leaf: &Pair, now: Timestamp) -> bool {
        let certificates =
            |pem: &str| CertificateDer::pem_slice_iter(pem.as_bytes()).filter_map(Result::ok).collect::<Vec<_>>();
        let mut trusted = RootCertStore::empty();
        trusted.add_parsable_certificates(certificates(roots));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(trusted.into(), provider).build();
        let shown = certificates(&leaf.certificate);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(now.as_second().unsigned_abs()));
        let (Ok(verifier), Some((own, others)), Ok(name)) =
            (verifier, shown.split_first(), ServerName::try_from("cache-default"))
        else {
            return false;
        };
        verifier.verify_server_cert(own, others, &name, &[], now).is_ok()
    }

    #[test]
    fn who_read_its_trust_before_a_rotation_accepts_the_leaf_after_it() {
        let names = BTreeSet::from(["cache-default".to_owned()]);
        let mut authority = Authority::default();
        let step = |authority: &mut Authority, wish| authority.step("default", &seen(wish, true, true)).is_ok();
        let now = seen(None, true, true).now;
        assert!(step(&mut authority, None));
        let before = authority.bundle().unwrap_or_default();
        assert!(step(&mut authority, Some("1")) && step(&mut authority, Some("1")));
        // As it is read again when the operator dies here.
        let mut authority = Authority::read(&authority.data(), Some("1".to_owned()));
        let leaf = authority.leaf(None, &names, now).ok().flatten();
        assert!(step(&mut authority, Some("1")));
        let after = authority.bundle().unwrap_or_default();
        assert!(!after.contains(&before));
        assert!(leaf.as_ref().is_some_and(|leaf| accepts(&before, leaf, now)), "a pull that began before");
        assert!(leaf.as_ref().is_some_and(|leaf| accepts(&after, leaf, now)));
        let (mut another, names) = (Authority::default(), names);
        assert!(step(&mut another, None));
        assert!(!leaf.as_ref().is_some_and(|leaf| accepts(&another.bundle().unwrap_or_default(), leaf, now)));
        let renewed = authority.leaf(None, &names, now).ok().flatten();
        assert!(renewed.is_some_and(|leaf| accepts(&before, &leaf, now)), "a node that was away throughout");
    }

    #[test]
    fn a_rotation_never_leaves_nodes_without_the_authority_of_the_leaf() {
        let names = BTreeSet::from(["cache-default".to_owned(), "10.96.0.7".to_owned(), "fd00::1".to_owned()]);
        let mut authority = Authority::default();
        assert!(authority.step("default", &seen(None, true, false)).is_ok_and(|changed| changed));
        let now = seen(None, true, true).now;
        let leaf = authority.leaf(None, &names, now).ok().flatten();
        let first =
            leaf.as_ref().and_then(|leaf| facts(&leaf.certificate)).map(|facts| (facts.names, facts.fingerprint));
        assert_eq!(first.as_ref().map(|(found, _)| found), Some(&names));
        let fingerprint = first.map(|(_, fingerprint)| fingerprint);
        assert!(authority.shows(leaf.as_ref(), fingerprint.as_deref()));
        assert!(!authority.shows(leaf.as_ref(), None));

        let one = authority.bundle().unwrap_or_default();
        assert!(authority.step("default", &seen(Some("1"), true, true)).is_ok_and(|changed| changed));
        let both = authority.bundle().unwrap_or_default();
        assert!(both.contains(&one) && both.len() > one.len());
        assert!(authority.leaf(leaf.clone(), &names, now).ok().flatten() == leaf, "the old one still signs");

        assert!(authority.step("default", &seen(Some("1"), true, true)).is_ok_and(|changed| changed));
        assert_eq!(authority.bundle().as_deref(), Some(both.as_str()), "nodes need not be told of the switch");
        let renewed = authority.leaf(leaf.clone(), &names, now).ok().flatten();
        assert!(renewed != leaf);
        assert!(authority.step("default", &seen(Some("1"), true, false)).is_ok_and(|changed| !changed));
        assert!(authority.step("default", &seen(Some("1"), true, true)).is_ok_and(|changed| changed));
        assert!(!authority.bundle().unwrap_or_default().contains(&one));
        let again = Authority::read(&authority.data(), Some("1".to_owned()));
        assert!(again == authority);
    }
}

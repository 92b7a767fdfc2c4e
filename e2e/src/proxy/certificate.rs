//! The authority of a site, and the wildcard certificate that it signed.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::write;
use crate::lab::CACHE;

/// A certificate for `*.example.com` and the cache's address, and who signed it; all in PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// The authority, which clients are told to trust.
    pub ca: String,
    /// The certificate.
    pub chain: String,
    /// Its key.
    pub key: String,
}

impl Certificate {
    /// Makes a new authority and one certificate.
    pub fn wildcard() -> Result<Self> {
        let mut params = CertificateParams::new(Vec::<String>::new()).context("no names")?;
        params.distinguished_name.push(DnType::CommonName, "Entrepot e2e site");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().context("failed to make the authority's key")?;
        let ca = params.self_signed(&key).context("failed to sign the authority")?.pem();
        let issuer = Issuer::new(params, key);
        let names = vec!["*.example.com".to_owned()];
        let mut leaf = CertificateParams::new(names).context("failed to read the site's names")?;
        leaf.subject_alt_names.push(SanType::IpAddress(CACHE.into()));
        let key = KeyPair::generate().context("failed to make the site's key")?;
        let chain = leaf.signed_by(&key, &issuer).context("failed to sign the site's certificate")?.pem();
        Ok(Self { ca, chain, key: key.serialize_pem() })
    }

    /// Writes chain and key into a folder, and their paths into a configuration in place of `CERTIFICATE` and `KEY`.
    pub(super) fn write_into(&self, folder: &Path, configuration: &str) -> Result<String> {
        let (chain, key) = (folder.join("site.crt"), folder.join("site.key"));
        write(&chain, &self.chain)?;
        write(&key, &self.key)?;
        let configuration = configuration.replace("CERTIFICATE", &chain.display().to_string());
        Ok(configuration.replace("KEY", &key.display().to_string()))
    }
}

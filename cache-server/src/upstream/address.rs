//! Which addresses lead inside: pure. May import nothing of ours.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Why an address is not a public one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// "This host": `0.0.0.0/8`, `::`.
    Unspecified,
    /// `127.0.0.0/8`, `::1`.
    Loopback,
    /// `10/8`, `172.16/12`, `192.168/16`, benchmarking `198.18/15`, `fc00::/7`, `fec0::/10`.
    Private,
    /// Carrier-grade NAT, `100.64/10`.
    Shared,
    /// `169.254/16` and `fe80::/10`, where clouds keep their metadata servers; with them `fd00:ec2::254`.
    LinkLocal,
    /// `224/4`, `ff00::/8`.
    Multicast,
    /// `192.0.0/24`, `240/4`, and IPv6 ranges that only tunnel.
    Reserved,
}

impl fmt::Display for AddressKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unspecified => "unspecified",
            Self::Loopback => "loopback",
            Self::Private => "private",
            Self::Shared => "shared by a carrier",
            Self::LinkLocal => "link-local",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
        })
    }
}

/// Which addresses may be connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Public ones only: for every host that the upstream chose.
    Public,
    /// All but link-local ones: for the upstream's own host and hosts that its administrator listed.
    Listed,
}

impl Reach {
    /// Refuses an address that is out of reach.
    pub(super) fn admit(self, address: IpAddr) -> Result<(), AddressKind> {
        match (self, kind(address)) {
            (_, None) => Ok(()),
            (Self::Public, Some(kind)) | (Self::Listed, Some(kind @ AddressKind::LinkLocal)) => Err(kind),
            (Self::Listed, Some(_)) => Ok(()),
        }
    }

    /// Refuses a URL whose host is literally an address that is out of reach.
    pub(super) fn admit_literal(self, url: &url::Url) -> Result<(), AddressKind> {
        match url.host() {
            Some(url::Host::Ipv4(address)) => self.admit(address.into()),
            Some(url::Host::Ipv6(address)) => self.admit(address.into()),
            Some(url::Host::Domain(_)) | None => Ok(()),
        }
    }
}

/// Why an address is not public; `None` if it is. Documentation ranges count as public, an IPv4 address inside an IPv6
/// one (mapped, compatible, NAT64, 6to4) as itself.
fn kind(address: IpAddr) -> Option<AddressKind> {
    match address {
        IpAddr::V4(address) => kind_v4(address),
        IpAddr::V6(address) => kind_v6(address),
    }
}

fn kind_v4(address: Ipv4Addr) -> Option<AddressKind> {
    match address.octets() {
        [0, ..] => Some(AddressKind::Unspecified),
        [127, ..] => Some(AddressKind::Loopback),
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [198, 18 | 19, ..] => Some(AddressKind::Private),
        [100, 64..=127, ..] => Some(AddressKind::Shared),
        [169, 254, ..] => Some(AddressKind::LinkLocal),
        [224..=239, ..] => Some(AddressKind::Multicast),
        [240..=255, ..] | [192, 0, 0, _] => Some(AddressKind::Reserved),
        _ => None,
    }
}

fn kind_v6(address: Ipv6Addr) -> Option<AddressKind> {
    let segments = address.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        kind_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 0] => Some(AddressKind::Unspecified),
        [0, 0, 0, 0, 0, 0, 0, 1] => Some(AddressKind::Loopback),
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        // NAT64 within a network: whatever it translates to is inside, and may be link-local there.
        [0x64, 0xff9b, 1, .., high, low] => Some(v4(high, low).unwrap_or(AddressKind::Private)),
        [0x2001, 0, ..] | [0x100, 0, 0, 0, ..] => Some(AddressKind::Reserved),
        [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254] => Some(AddressKind::LinkLocal),
        [first, ..] => match first {
            0xfe80..=0xfebf => Some(AddressKind::LinkLocal),
            0xfc00..=0xfdff | 0xfec0..=0xfeff => Some(AddressKind::Private),
            0xff00.. => Some(AddressKind::Multicast),
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_lead_inside_are_known() {
        let table = [
            ("8.8.8.8", None),
            ("203.0.113.7", None),
            ("198.51.100.7", None),
            ("192.0.2.7", None),
            ("172.15.0.1", None),
            ("172.32.0.1", None),
            ("100.63.0.1", None),
            ("100.128.0.1", None),
            ("2606:4700::1111", None),
            ("2001:db8::1", None),
            ("::ffff:8.8.8.8", None),
            ("64:ff9b::808:808", None),
            ("0.0.0.0", Some(AddressKind::Unspecified)),
            ("0.1.2.3", Some(AddressKind::Unspecified)),
            ("127.0.0.1", Some(AddressKind::Loopback)),
            ("127.9.9.9", Some(AddressKind::Loopback)),
            ("10.1.2.3", Some(AddressKind::Private)),
            ("172.16.0.1", Some(AddressKind::Private)),
            ("172.31.255.255", Some(AddressKind::Private)),
            ("192.168.1.1", Some(AddressKind::Private)),
            ("198.19.0.1", Some(AddressKind::Private)),
            ("100.64.0.1", Some(AddressKind::Shared)),
            ("169.254.169.254", Some(AddressKind::LinkLocal)),
            ("224.0.0.1", Some(AddressKind::Multicast)),
            ("255.255.255.255", Some(AddressKind::Reserved)),
            ("192.0.0.1", Some(AddressKind::Reserved)),
            ("::", Some(AddressKind::Unspecified)),
            ("::1", Some(AddressKind::Loopback)),
            ("::127.0.0.1", Some(AddressKind::Loopback)),
            ("::ffff:127.0.0.1", Some(AddressKind::Loopback)),
            ("::ffff:169.254.169.254", Some(AddressKind::LinkLocal)),
            ("64:ff9b::a9fe:a9fe", Some(AddressKind::LinkLocal)),
            ("64:ff9b::a00:1", Some(AddressKind::Private)),
            ("64:ff9b:1::808:808", Some(AddressKind::Private)),
            ("64:ff9b:1::a9fe:a9fe", Some(AddressKind::LinkLocal)),
            ("2002:7f00:1::", Some(AddressKind::Loopback)),
            ("fe80::1", Some(AddressKind::LinkLocal)),
            ("febf::1", Some(AddressKind::LinkLocal)),
            ("fd00:ec2::254", Some(AddressKind::LinkLocal)),
            ("fc00::1", Some(AddressKind::Private)),
            ("fd12::1", Some(AddressKind::Private)),
            ("fec0::1", Some(AddressKind::Private)),
            ("ff02::1", Some(AddressKind::Multicast)),
        ];
        for (text, expected) in table {
            let address = text.parse().expect("an address");
            assert_eq!(kind(address), expected, "{text}");
            assert_eq!(Reach::Public.admit(address).err(), expected, "{text}");
            let never = expected.filter(|kind| *kind == AddressKind::LinkLocal);
            assert_eq!(Reach::Listed.admit(address).err(), never, "{text}");
        }
    }

    #[test]
    fn odd_spellings_of_an_address_are_seen_through() {
        for text in ["http://0x7f.1/", "http://2130706433/", "http://127.1/", "http://[::ffff:7f00:1]/", "http://0177.0.0.1/"] {
            let url = url::Url::parse(text).expect("a URL");
            assert_eq!(Reach::Public.admit_literal(&url), Err(AddressKind::Loopback), "{text}");
        }
    }
}

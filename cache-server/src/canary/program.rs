//! The canary's program: a static ELF executable that exits with 0, byte by byte. Pure. May import nothing of ours.

/// A processor that the program is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processor {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Processor {
    /// All that there is a program for.
    pub const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// Its name in images (`architecture`).
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// Its number in ELF headers (`e_machine`).
    const fn machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }

    /// `exit(0)`.
    const fn code(self) -> &'static [u8] {
        match self {
            // mov eax, 60; xor edi, edi; syscall
            Self::Amd64 => &[0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05],
            // mov x8, #93; mov x0, #0; svc #0
            Self::Arm64 => &[0xa8, 0x0b, 0x80, 0xd2, 0x00, 0x00, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4],
        }
    }
}

const HEADER: u64 = 64;
const SEGMENT: u64 = 56;
const SEGMENTS: u16 = 2;
/// Where the file is loaded: a multiple of every page size.
const BASE: u64 = 0x40_0000;
/// The largest page of either processor.
const PAGE: u64 = 0x1_0000;

/// The whole file.
#[must_use]
pub fn elf(processor: Processor) -> Vec<u8> {
    let code = processor.code();
    let start = HEADER + u64::from(SEGMENTS) * SEGMENT;
    let length = start + code.len() as u64;
    let mut file = Vec::new();
    // 64 bit, little endian, version 1, System V.
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    // An executable (2) of this machine; ELF version 1.
    halves(&mut file, &[2, processor.machine(), 1, 0]);
    // Entry point, program headers, no section headers.
    words(&mut file, &[BASE + start, HEADER, 0]);
    // No flags; sizes and counts of the headers.
    halves(&mut file, &[0, 0, 64, 56, SEGMENTS, 64, 0, 0]);
    // Loaded (1), readable and executable (5): the whole file.
    halves(&mut file, &[1, 0, 5, 0]);
    words(&mut file, &[0, BASE, BASE, length, length, PAGE]);
    // The stack (0x6474e551) is writable and not executable (6).
    halves(&mut file, &[0xe551, 0x6474, 6, 0]);
    words(&mut file, &[0, 0, 0, 0, 0, 16]);
    file.extend(code);
    file
}

fn halves(file: &mut Vec<u8>, values: &[u16]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

fn words(file: &mut Vec<u8>, values: &[u64]) {
    file.extend(values.iter().flat_map(|value| value.to_le_bytes()));
}

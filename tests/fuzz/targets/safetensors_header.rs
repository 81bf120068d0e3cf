//! A whole safetensors file: what this reader accepts, the reference implementation accepts and
//! reads alike; and what is written from a header reads as that header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use tlkit::safetensors::{Header, MAX_HEADER_BYTES, encode_header};

fuzz_target!(|file: &[u8]| {
    let Ok(len) = Header::announced_len(file, file.len() as u64, MAX_HEADER_BYTES) else {
        return;
    };
    let (json, data) = file[8..].split_at(len as usize);
    let Ok(header) = Header::parse(json, data.len() as u64) else {
        return;
    };

    let reference = SafeTensors::deserialize(file).expect("the reference reader accepts it");
    assert_eq!(reference.len(), header.tensors.len());
    for info in &header.tensors {
        assert_eq!(header.get(&info.name), Some(info));
        let theirs = reference.tensor(&info.name).expect("the same names");
        assert_eq!(theirs.dtype().to_string(), info.dtype.as_str());
        assert_eq!(theirs.shape(), info.shape);
        let ours = &data[info.range.start as usize..info.range.end as usize];
        assert!(std::ptr::eq(theirs.data(), ours) || ours.is_empty());
    }

    let metadata: Vec<(&str, &str)> = header
        .metadata
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let tensors = header.tensors.iter();
    let tensors = tensors.map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.byte_len()));
    let encoded = encode_header(&metadata, tensors, 8);
    let again = Header::parse(&encoded[8..], data.len() as u64).expect("own output parses");
    assert_eq!(
        (again.metadata, again.tensors),
        (header.metadata, header.tensors)
    );
});

/*
** codec_format.h - the bytes of a message, and the small functions that both
** directions use to write and read them. No state, no Lua.
**
**   message  := count value*           count: 1 byte, or 255 and 4 bytes
**   value    := tag ...                as the list of tags says
**   table    := TABLE_H hint pair* end
**             | TABLE_A size hint item* [PAIRS pair*] end
**   item     := value | NIL (a hole) | INTEGERS ... | FLOATS ...
**   pair     := value value            end := END | META value
**   function := FUNCTION upvalues size checksum dump upvalue*
**   upvalue  := UPVALUE value | UPREF offset
**   reduced  := REDUCED count value*   the constructor first
**   named    := NAMED kind name [name]
**
** Everything is native: little or big endian as the machine, unaligned.
**
** Identity costs nothing until it is needed. What can be met again (tables,
** functions, upvalues, long strings, ...) has an even tag; when it IS met
** again the writer goes back and sets the lowest bit of that tag, and writes
** REF with the tag's offset in the message. So a reader remembers only what
** somebody will ask for.
**
** Short strings that repeat get a slot of a small cache at their second
** sight: DEFINE fills it, later ones are one or two bytes. Slots 0..63 are
** for keys, the rest for values, so that values never push keys out.
**
** A hint is how many pairs follow, for the receiver to make room: exact up
** to 191, then 192 + the logarithm, rounded up. It is never believed beyond
** the bytes that are left.
*/
#ifndef PROCPOOL_CODEC_FORMAT_H
#define PROCPOOL_CODEC_FORMAT_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    TAG_SMALL_INTEGERS = 0x00,  /* 0x00..0x7f: the integer itself */
    TAG_TINY_STRINGS = 0x80,    /* 0x80..0x9f: that many bytes follow */
    TAG_NIL = 0xa0,
    TAG_FALSE = 0xa1,
    TAG_TRUE = 0xa2,
    TAG_FLOAT = 0xa3,           /* 8 bytes */
    TAG_INTEGER1 = 0xa4,        /* signed, 1, 2, 4, 8 bytes */
    TAG_INTEGER2 = 0xa5,
    TAG_INTEGER4 = 0xa6,
    TAG_INTEGER8 = 0xa7,
    TAG_STRING = 0xa8,          /* size, bytes */
    TAG_DEFINE = 0xaa,          /* slot, length (1 byte each), bytes */
    TAG_SLOT = 0xab,            /* slot */
    TAG_TABLE_H = 0xac,
    TAG_TABLE_A = 0xae,
    TAG_FUNCTION = 0xb0,
    TAG_REDUCED = 0xb2,
    TAG_NAMED = 0xb4,
    TAG_UPVALUE = 0xb6,
    TAG_REF = 0xb8,             /* offset of the first sight's tag */
    TAG_UPREF = 0xb9,
    TAG_GLOBALS = 0xba,         /* the receiver's globals table */
    TAG_END = 0xbb,
    TAG_PAIRS = 0xbc,
    TAG_META = 0xbd,
    TAG_INTEGERS = 0xbe,        /* width (1, 2, 4, 8), count (2 bytes), data */
    TAG_FLOATS = 0xbf,          /* count (2 bytes), data */
    TAG_KEYS = 0xc0             /* 0xc0..0xff: the key in slot 0..63 */
};

enum { TAG_SHARED = 1 };        /* the bit that means: will be referred to */

enum { NAME_REGISTERED, NAME_MODULE, NAME_FIELD };  /* kinds of NAMED */

enum {
    SHORT_STRING = 40,          /* Lua interns up to this length */
    KEY_SLOTS = 64,
    VALUE_SLOTS = 128,
    SLOTS = KEY_SLOTS + VALUE_SLOTS,
    RUN_MAX = 512,              /* numbers in one INTEGERS or FLOATS */
    RUN_MIN = 4,                /* fewer are cheaper one by one */
    SIZE_BYTES = 9,             /* the most that size_write writes */
    HINT_EXACT = 191
};

/* Sizes and offsets: one byte up to 251, else a byte that says how wide. */
static inline uint8_t *size_write(uint8_t *p, uint64_t n)
{
    if (n < 252) {
        *p++ = (uint8_t)n;
        return p;
    }
    if (n <= UINT16_MAX) {
        uint16_t v = (uint16_t)n;
        *p++ = 252;
        memcpy(p, &v, 2);
        return p + 2;
    }
    if (n <= UINT32_MAX) {
        uint32_t v = (uint32_t)n;
        *p++ = 253;
        memcpy(p, &v, 4);
        return p + 4;
    }
    *p++ = 254;
    memcpy(p, &n, 8);
    return p + 8;
}

/* NULL when the bytes end before the size does. */
static inline const uint8_t *size_read(const uint8_t *p, const uint8_t *end,
                                       uint64_t *n)
{
    if (p >= end)
        return NULL;
    uint8_t first = *p++;
    if (first < 252) {
        *n = first;
        return p;
    }
    size_t width = first == 252 ? 2 : first == 253 ? 4 : first == 254 ? 8 : 0;
    if (width == 0 || (size_t)(end - p) < width)
        return NULL;
    uint16_t v2;
    uint32_t v4;
    switch (width) {
    case 2: memcpy(&v2, p, 2); *n = v2; break;
    case 4: memcpy(&v4, p, 4); *n = v4; break;
    default: memcpy(n, p, 8); break;
    }
    return p + width;
}

/* At most 9 bytes. */
static inline uint8_t *integer_write(uint8_t *p, int64_t n)
{
    if (n >= 0 && n < 0x80) {
        *p++ = (uint8_t)n;
        return p;
    }
    if (n == (int8_t)n) {
        *p++ = TAG_INTEGER1;
        *p++ = (uint8_t)n;
        return p;
    }
    if (n == (int16_t)n) {
        int16_t v = (int16_t)n;
        *p++ = TAG_INTEGER2;
        memcpy(p, &v, 2);
        return p + 2;
    }
    if (n == (int32_t)n) {
        int32_t v = (int32_t)n;
        *p++ = TAG_INTEGER4;
        memcpy(p, &v, 4);
        return p + 4;
    }
    *p++ = TAG_INTEGER8;
    memcpy(p, &n, 8);
    return p + 8;
}

static inline uint8_t *float_write(uint8_t *p, double n)
{
    *p++ = TAG_FLOAT;
    memcpy(p, &n, 8);
    return p + 8;
}

static inline uint8_t hint_of(uint64_t pairs)
{
    if (pairs <= HINT_EXACT)
        return (uint8_t)pairs;
    return (uint8_t)(HINT_EXACT + 1 + 64 - __builtin_clzll(pairs - 1));
}

static inline uint64_t hint_pairs(uint8_t hint)
{
    if (hint <= HINT_EXACT)
        return hint;
    unsigned log = hint - (HINT_EXACT + 1u);
    return log < 48 ? UINT64_C(1) << log : UINT64_C(1) << 48;
}

/*
** Guards the dump of a function: Lua does not verify bytecode, so a damaged
** dump must never reach `load`. Against damage, not against malice.
*/
static inline uint32_t checksum(const uint8_t *p, size_t size)
{
    uint64_t h = UINT64_C(0x9e3779b97f4a7c15) ^ size, v;
    for (; size >= 8; p += 8, size -= 8) {
        memcpy(&v, p, 8);
        h = (h ^ v) * UINT64_C(0xff51afd7ed558ccd);
        h ^= h >> 32;
    }
    v = 0;
    memcpy(&v, p, size);
    h = (h ^ v) * UINT64_C(0xc4ceb9fe1a85ec53);
    h ^= h >> 29;
    return (uint32_t)(h ^ (h >> 32));
}

#endif

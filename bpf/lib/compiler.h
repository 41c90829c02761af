/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Compiler and loader glue: inlining, branch hints, word loads, and the macros through which maps are
 * defined. Nothing outside this file and maps.h knows that bcc compiles the programs.
 */
#ifndef LINKSPAN_COMPILER_H
#define LINKSPAN_COMPILER_H

#include <uapi/linux/types.h>

/* bcc makes a program of every function that is not static. */
#define LS_INLINE static __always_inline

#ifndef likely
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#endif

/* Keeps the compiler from copying what follows for each value that it knows `x` may have: the verifier would walk every
 * copy. */
#define LS_HIDE(x) asm volatile("" : "+r"(x))

/* The loader passes the directory of the pinned maps as LS_MAP_DIR, a string literal. bcc opens the map of that
 * path if there is one, so that counters and endpoints outlive a change of programs; the loader has checked its
 * shape before. */
#define LS_MAP(_type, _key, _value, _name, _max_entries, _flags) \
	BPF_TABLE_PINNED(_type, _key, _value, _name, _max_entries, LS_MAP_DIR "/" #_name, _flags)

/* A map that belongs to its program alone: not pinned, gone with it. */
#define LS_PRIVATE_MAP(_type, _key, _value, _name, _max_entries, _flags) \
	BPF_F_TABLE(_type, _key, _value, _name, _max_entries, _flags)

/* The loader passes LS_TRACE, the directory of the map of one value that traced programs tell their decisions in, to build
 * them. They count for nobody: what programs count in is their own there, and holds next to nothing. */
#ifdef LS_TRACE
#define LS_TRACE_MAP(_value, _name) BPF_TABLE_PINNED("array", __u32, _value, _name, 1, LS_TRACE "/" #_name, 0)
#define LS_COUNT_MAP(_type, _key, _value, _name, _max_entries, _flags) \
	LS_PRIVATE_MAP(_type, _key, _value, _name, 1, _flags)
#else
#define LS_COUNT_MAP LS_MAP
#endif

/* Unaligned words of packets and map values, in memory order. All machines that the kernel's BPF JITs run the
 * fast path on load them in one instruction; the verifier allows it where the kernel does. */
LS_INLINE __u16 ls_load16(const void *from)
{
	return *(const __u16 *)from;
}

LS_INLINE __u32 ls_load32(const void *from)
{
	return *(const __u32 *)from;
}

LS_INLINE __u64 ls_load64(const void *from)
{
	return *(const __u64 *)from;
}

#endif

/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What a program tells of one packet when it is built to be traced (LS_TRACE), and nothing in a program that runs on a
 * device: there the macros leave no instruction. A traced program runs by prog test-run alone. It looks into the same maps,
 * has counters and flows of its own, copies nothing to anyone, and spends no endpoint's limit (docs/adr/0022-trace.md).
 */
#ifndef LINKSPAN_TRACE_H
#define LINKSPAN_TRACE_H

#include "../maps.h"

#ifdef LS_TRACE

LS_TRACE_MAP(struct ls_decisions, decisions);

LS_INLINE void ls_tell(__u32 what, __u32 operand)
{
	__u32 first = 0, count;
	struct ls_decisions *told = decisions.lookup(&first);

	if (!told)
		return;
	count = told->count;
	if (count >= LS_MAX_DECISIONS)
		return;
	told->each[count].what = what;
	told->each[count].operand = operand;
	told->count = count + 1;
}

#define LS_TELL(what, operand) ls_tell(LS_TOLD_##what, operand)
#define LS_TELL_FOUND(is_found, what, operand, other) \
	do { \
		if (is_found) \
			LS_TELL(what, operand); \
		else \
			LS_TELL(other, 0); \
	} while (0)

/* A test run redirects nothing, but a copy would be sent. */
#define bpf_redirect(ifindex, flags) \
	(ls_tell((flags) & BPF_F_INGRESS ? LS_TOLD_REDIRECT_IN : LS_TOLD_REDIRECT, ifindex), bpf_redirect(ifindex, flags))
#define bpf_redirect_peer(ifindex, flags) \
	(ls_tell(LS_TOLD_REDIRECT_PEER, ifindex), bpf_redirect_peer(ifindex, flags))
#define ls_redirect_neigh(ifindex, next, len, flags) \
	(ls_tell(LS_TOLD_REDIRECT_NEIGH, ifindex), ls_redirect_neigh(ifindex, next, len, flags))
#define bpf_clone_redirect(skb, ifindex, flags) \
	ls_tell((flags) & BPF_F_INGRESS ? LS_TOLD_COPY_IN : LS_TOLD_COPY, ifindex)

/* A test run can set neither, but cb. */
#define LS_NOTE_IN(skb) ((skb)->cb[0])
#define LS_CLASS_OF(skb) ((skb)->cb[0])

#else

#define LS_TELL(what, operand) \
	do { \
	} while (0)
#define LS_TELL_FOUND(is_found, what, operand, other) LS_TELL(what, operand)
#define LS_NOTE_IN(skb) ((skb)->tc_index)
#define LS_CLASS_OF(skb) ((skb)->tc_classid)

#endif

#endif

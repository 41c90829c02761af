/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What datapath._native offers to Python besides the structs of abi.h. cffi reads this file as build_native.py
 * reads abi.h, so it holds declarations only.
 *
 * Every int function returns a result >= 0 or -errno, and may block; cffi releases
 * the GIL around each call. Sizes are bytes.
 */
#ifndef LINKSPAN_NATIVE_H
#define LINKSPAN_NATIVE_H

#include <linux/types.h>

struct bpf_map_info;
struct bpf_prog_info;
struct __sk_buff;
struct ls_latency;

/* bpf.c: one bpf(2) command each. Descriptors returned are close-on-exec. */
int ls_bpf_obj_get(const char *path);
int ls_bpf_obj_pin(int fd, const char *path);
int ls_bpf_is_bpffs(const char *path); /* 1: on a bpffs; 0: on another file system */
int ls_bpf_map_create(__u32 type, __u32 key_size, __u32 value_size, __u32 max_entries, __u32 flags, const char *name);
int ls_bpf_map_lookup(int fd, const void *key, void *value);
int ls_bpf_map_update(int fd, const void *key, const void *value, __u64 flags);
int ls_bpf_map_delete(int fd, const void *key);
int ls_bpf_map_next_key(int fd, const void *key, void *next_key);
int ls_bpf_map_lookup_batch(int fd, const void *in_batch, void *out_batch, void *keys, void *values, __u32 *count);
int ls_bpf_map_info(int fd, struct bpf_map_info *info);
int ls_bpf_prog_info(int fd, struct bpf_prog_info *info);
int ls_bpf_prog_load(__u32 type, const void *insns, __u32 insn_count, const char *license, const char *name,
		     __u32 log_level, char *log, __u32 log_size);
int ls_bpf_prog_test_run(int fd, const void *data_in, __u32 data_in_size, void *data_out, __u32 *data_out_size,
			 struct __sk_buff *ctx, __u32 repeat, __u32 *retval, __u32 *duration_ns);
int ls_bpf_link_create(int prog_fd, __u32 ifindex, __u32 attach_type, __u32 flags);
int ls_bpf_link_update(int link_fd, int prog_fd);
int ls_bpf_link_detach(int link_fd);
/* Fills prog_ids with up to *count programs at the hook, in the order in which they run, and *count with how many. */
int ls_bpf_prog_query(__u32 ifindex, __u32 attach_type, __u32 *prog_ids, __u32 *count);
int ls_bpf_prog_get_fd_by_id(__u32 id);

struct ls_link_info {
	__u32 type; /* enum bpf_link_type */
	__u32 id;
	__u32 prog_id;
	__u32 ifindex;     /* of tcx, XDP and netkit links; 0 once the device is gone or the link is detached */
	__u32 attach_type; /* of tcx and netkit links */
};
int ls_bpf_link_info(int fd, struct ls_link_info *info);

/* netns.c. Where a function works inside another namespace it does so in a thread of its own, so the caller's
 * namespace never changes. *step names the system call that failed. */
int ls_netns_create(const char *path, const char **step);
int ls_netns_unmount(const char *path);
int ls_netns_prepare_directory(const char *path, const char **step);
int ls_netns_check(const char *path); /* 1: a network namespace; 0: something else */
int ls_netns_open_socket(const char *path, int family, int type, int protocol, const char **step);
int ls_netns_enter(const char *path, const char **step);
int ls_netns_unshare(void);

/* probe.c: sends `size` bytes from socket a to b and back, `count` times, and writes how long each took. Both are blocking
 * and connected to each other. -EAGAIN: nothing arrived in time, as SO_RCVTIMEO has it. */
int ls_probe_round_trips(int a, int b, __u32 size, __u32 count, __u64 *ns);

/* latency.c: of each value the first bucket in use, and the one behind the last; both 0 if none is. */
void ls_latency_used(const struct ls_latency *values, __u32 count, __u8 *first, __u8 *end);

/* links.c */
struct ls_link {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u32 ifindex;
	__u32 master; /* ifindex of the bridge or other upper device; 0: none */
	__u32 peer;   /* IFLA_LINK: the other end of a veth, in its namespace, or the lower device; 0: none */
	__u32 flags;  /* IFF_* */
	__u32 mtu;
	__u32 operstate; /* IF_OPER_* */
	__u32 mac_len;
	__u8 mac[32];
	char ifname[16];
	char kind[32];
	char alias[256];
};
/* Fills *links with a malloc'ed array, which ls_links_free frees, and returns the count. sock < 0: a socket of the
 * calling thread's namespace is opened for the call. */
int ls_links_dump(int sock, struct ls_link **links);
void ls_links_free(struct ls_link *links);

/* exposition.c */
#define LS_HISTOGRAM_BUCKETS 256
#define LS_HISTOGRAM_BYTES 16384 /* more than any histogram's numbers take in either format */
struct ls_histogram {
	double total_seconds;
	__u32 used; /* buckets that are in use, at most LS_HISTOGRAM_BUCKETS, in ascending order */
	int bucket[256];
	__u64 count[256];
};
struct ls_octaves {
	int first; /* classic bounds are 2**first, 2**(first + step) … seconds, `bounds` of them */
	int step;
	__u32 bounds;
	int per_octave; /* native buckets between two powers of two */
};
/* `around` are the texts before and after the series of each line, one behind the other, each with its NUL. */
__u32 ls_histogram_text(char *out, const struct ls_histogram *h, const struct ls_octaves *octaves, const char *around,
			const char *series, __u32 series_size);
__u32 ls_histogram_protobuf(char *out, const struct ls_histogram *h, const struct ls_octaves *octaves,
			    const double *bounds, int schema, double zero_threshold);

#endif

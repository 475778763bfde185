/*
 * pepper.h
 *		The secrets outside the database that digests are made with.
 */
#ifndef PEPPER_H
#define PEPPER_H

#define PEPPER_ID_MAX 32767
/* HMAC-SHA-256 takes in a longer key only as its hash. */
#define PEPPER_MIN_LEN 16
#define PEPPER_MAX_LEN 64

typedef struct Pepper
{
	int			id;				/* 1 … PEPPER_ID_MAX */
	int			len;
	uint8		secret[PEPPER_MAX_LEN];
} Pepper;

/* The setting rk_apikeys.pepper_file; empty: no pepper. */
extern char *pepper_file;

extern void pepper_assign_file(const char *newval, void *extra);
extern const Pepper *pepper_current(void);
extern const Pepper *pepper_find(int id, const char *key_id);

#endif

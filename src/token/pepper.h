/*
 * pepper.h
 *		The peppers: secrets outside the database that sign digests.
 */
#ifndef PEPPER_H
#define PEPPER_H

/* api_keys.pepper_id is a smallint. */
#define PEPPER_ID_MAX 32767
/* HMAC-SHA-256 replaces a key of more than 64 bytes by its hash. */
#define PEPPER_MIN_LEN 16
#define PEPPER_MAX_LEN 64

typedef struct Pepper
{
	int			id;				/* 1 to PEPPER_ID_MAX */
	int			len;			/* bytes of the secret */
	uint8		secret[PEPPER_MAX_LEN];
} Pepper;

/* The setting rk_apikeys.pepper_file.  Empty: digests have no pepper. */
extern char *pepper_file;

extern void pepper_assign_file(const char *newval, void *extra);
extern const Pepper *pepper_current(void);
extern const Pepper *pepper_find(int id, const char *key_id);
extern bool pepper_has(int id);

#endif

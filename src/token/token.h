/*
 * token.h
 *		What a token looks like.
 */
#ifndef TOKEN_H
#define TOKEN_H

#define TOKEN_NAME_MAX 16		/* of the prefix and of the environment */
#define TOKEN_KEY_ID_LEN 12
#define TOKEN_SECRET_LEN 43
#define TOKEN_CHECK_LEN 6
#define TOKEN_HINT_LEN 4
/* The secret with its check digits: the last part of a token. */
#define TOKEN_TAIL_LEN (TOKEN_SECRET_LEN + TOKEN_CHECK_LEN)
#define TOKEN_MIN_LEN (1 + 1 + 1 + 1 + TOKEN_KEY_ID_LEN + 1 + TOKEN_TAIL_LEN)
#define TOKEN_MAX_LEN (TOKEN_MIN_LEN + 2 * (TOKEN_NAME_MAX - 1))

/* The parts of a token; pointers into the string that was parsed. */
typedef struct TokenParts
{
	const char *prefix;
	int			prefix_len;
	const char *environment;
	int			environment_len;
	const char *key_id;			/* TOKEN_KEY_ID_LEN bytes */
	const char *secret;			/* TOKEN_SECRET_LEN bytes */
} TokenParts;

/*
 * Return a hash of a key id (TOKEN_KEY_ID_LEN bytes).  All bits of the hash
 * are equally good.  Another seed gives another hash.  Key ids are random and
 * nobody chooses them, so nobody can make them collide.
 */
static inline uint64
token_hash_key_id(const char *key_id, uint32 seed)
{
	uint64		hash;
	uint32		rest;

	memcpy(&hash, key_id, sizeof(hash));
	memcpy(&rest, key_id + sizeof(hash), sizeof(rest));
	hash = (hash ^ seed) * UINT64CONST(0x9e3779b97f4a7c15);
	hash = (hash ^ (hash >> 32) ^ rest) * UINT64CONST(0x9e3779b97f4a7c15);
	return hash ^ (hash >> 32);
}

extern bool token_name_ok(const char *s, size_t len);
extern bool token_split(const char *s, size_t len, TokenParts *parts);
extern bool token_check(const char *s, size_t len);
extern bool token_parse(const char *s, size_t len, TokenParts *parts);
extern const char *token_key_id(const char *s, size_t len);
extern size_t token_make(const char *prefix, const char *environment,
						 char *token);
extern void token_make_key_id(char *key_id);
extern size_t token_mask(const TokenParts *parts, char *out);
extern bool token_find(const char *s, size_t len, size_t from,
					   TokenParts *parts, size_t *start, size_t *token_len);
extern bool token_suspected(const char *s, size_t len);
extern size_t token_redact(char *s, size_t len);
extern size_t token_redact_kept(char *s, size_t len);
extern size_t token_redact_cut(char *s, size_t len);

#endif

/*
 * texts.h
 *		Texts with tokens in them, for the fuzzers that mask.
 */
#ifndef TEXTS_H
#define TEXTS_H

#define TEXTS_MAX 1024

extern bool texts_base62(char c);
extern size_t texts_expand(const uint8 *data, size_t size, char *text);
extern char *texts_exact(const char *s, size_t len);
extern bool texts_behind_key_id(const char *s, size_t at);
extern bool texts_tail_of_name(const char *s, size_t at, size_t end);

#endif
